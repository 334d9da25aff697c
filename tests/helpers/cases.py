"""Every objective in every form its weights can take, on random tokens: what the contract tests run over.

Shape legend: T tokens, V vocabulary, D hidden size of student and teacher, K entries kept of V.
"""

from collections.abc import Callable

import torch

from uncertune.objectives import OBJECTIVES, FactoredTeacher, Head, Targets

T, V, D, K = 13, 37, 8, 5

Case = Callable[[torch.dtype, int], Targets]


def labels(size: int = T, vocabulary: int = V) -> torch.Tensor:
    return torch.randint(vocabulary, (size,))


def half(size: int = T) -> torch.Tensor:
    return torch.arange(size) % 3 == 0


def probabilities(dtype: torch.dtype, size: int = T, vocabulary: int = V) -> torch.Tensor:
    return torch.randn(size, vocabulary, dtype=dtype).softmax(-1)


def factored(dtype: torch.dtype, size: int = T, **options) -> FactoredTeacher:
    return FactoredTeacher(torch.randn(size, D, dtype=dtype), Head(torch.randn(V, D, dtype=dtype), **options))


def sparse(dtype: torch.dtype, size: int = T) -> tuple[torch.Tensor, torch.Tensor]:
    top = probabilities(dtype, size).topk(K, -1)
    return top.indices, top.values


def signed(dtype: torch.dtype, size: int = T) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randint(V, (size, K)), torch.randn(size, K, dtype=dtype)  # repeated ids add up


CASES: dict[str, Case] = {
    "mle": lambda dtype, n: OBJECTIVES["mle"](labels(n)),
    "masked_mle": lambda dtype, n: OBJECTIVES["masked_mle"](labels(n), selected=half(n)),
    "distill/dense": lambda dtype, n: OBJECTIVES["distill"](labels(n), teacher=probabilities(dtype, n)),
    "distill/factored": lambda dtype, n: OBJECTIVES["distill"](labels(n), teacher=factored(dtype, n)),
    "distill/factored with its own head": lambda dtype, n: OBJECTIVES["distill"](
        labels(n), teacher=factored(dtype, n, bias=torch.randn(V, dtype=dtype), softcap=4.0, scale=0.7)
    ),
    "distill/sparse": lambda dtype, n: OBJECTIVES["distill"](labels(n), teacher=sparse(dtype, n)),
    **{
        f"truncated_distill/{form}": lambda dtype, n, form=form: OBJECTIVES["truncated_distill"](
            labels(n), teacher=probabilities(dtype, n), top_k=K, truncation=form
        )
        for form in ("plain", "renormalized", "tail")
    },
    "truncated_distill/whole vocabulary": lambda dtype, n: OBJECTIVES["truncated_distill"](
        labels(n), teacher=probabilities(dtype, n), truncation="tail"
    ),
    "masked_mle_distill/factored": lambda dtype, n: OBJECTIVES["masked_mle_distill"](
        labels(n), selected=half(n), teacher=factored(dtype, n)
    ),
    "masked_mle_distill/dense": lambda dtype, n: OBJECTIVES["masked_mle_distill"](
        labels(n), selected=half(n), teacher=probabilities(dtype, n)
    ),
    "masked_mle_distill/sparse": lambda dtype, n: OBJECTIVES["masked_mle_distill"](
        labels(n), selected=half(n), teacher=sparse(dtype, n)
    ),
    "policy_gradient/sampled": lambda dtype, n: OBJECTIVES["policy_gradient"](
        labels(n), advantages=torch.randn(n, dtype=dtype)
    ),
    "policy_gradient/sparse": lambda dtype, n: OBJECTIVES["policy_gradient"](labels(n), advantages=signed(dtype, n)),
    "policy_gradient/dense": lambda dtype, n: OBJECTIVES["policy_gradient"](
        labels(n), advantages=torch.randn(n, V, dtype=dtype)
    ),
    "policy_gradient/with a reference": lambda dtype, n: OBJECTIVES["policy_gradient"](
        labels(n), advantages=torch.randn(n, dtype=dtype), teacher=factored(dtype, n), beta=0.3
    ),
    "policy_gradient/dense with a dense reference": lambda dtype, n: OBJECTIVES["policy_gradient"](
        labels(n), advantages=torch.randn(n, V, dtype=dtype), teacher=probabilities(dtype, n), beta=0.3
    ),
    "policy_gradient/sparse with a sparse reference": lambda dtype, n: OBJECTIVES["policy_gradient"](
        labels(n), advantages=signed(dtype, n), teacher=sparse(dtype, n), beta=0.3
    ),
    "oracle/dense": lambda dtype, n: OBJECTIVES["oracle"](labels(n), oracle=probabilities(dtype, n)),
    "oracle/sparse": lambda dtype, n: OBJECTIVES["oracle"](labels(n), oracle=sparse(dtype, n)),
    "token weights": lambda dtype, n: OBJECTIVES["masked_mle_distill"](
        labels(n), selected=half(n), teacher=factored(dtype, n)
    ).scaled(torch.rand(n, dtype=dtype) * (torch.arange(n) % 4 != 1)),
    "nothing": lambda dtype, n: OBJECTIVES["masked_mle"](labels(n), selected=torch.zeros(n, dtype=torch.bool)),
}
