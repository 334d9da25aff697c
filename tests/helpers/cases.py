"""Every objective in every form its weights can take, on random tokens: what the contract tests run over.

Shape legend: T tokens, V vocabulary, D hidden size of student and teacher, K entries kept of V.
"""

from collections.abc import Callable

import torch

from uncertune.objectives import (
    OBJECTIVES,
    TOKEN_WEIGHTINGS,
    FactoredTeacher,
    Head,
    Targets,
    Teacher,
    anchored,
    token_weighting,
)
from uncertune.objectives.loss import token_view

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


def members(dtype: torch.dtype, size: int = T) -> list[Teacher]:
    return [factored(dtype, size, softcap=softcap) for softcap in (None, 4.0, None)]


def family_case(
    dtype: torch.dtype, n: int, objective: str, weighting: str, anchor: bool, count: int, smoothing: float = 0.0
) -> Targets:
    """A token weighting with or without an anchor, over an objective with a teacher of ``count`` members."""
    y = labels(n)
    given: dict = {"token_weighting": token_weighting(weighting), "label_smoothing": smoothing}
    if objective != "mle":
        given["selected"] = half(n)
    if count:
        given["teacher"] = members(dtype, n)[:count]
    targets = OBJECTIVES[objective](y, **given)
    return anchored(targets, y, factored(dtype, n), 0.1) if anchor else targets


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
    "policy_gradient/anchored": lambda dtype, n: anchored(
        OBJECTIVES["policy_gradient"](y := labels(n), advantages=torch.randn(n, dtype=dtype)),
        y,
        factored(dtype, n),
        0.3,
    ),
    "policy_gradient/dense with a dense anchor": lambda dtype, n: anchored(
        OBJECTIVES["policy_gradient"](y := labels(n), advantages=torch.randn(n, V, dtype=dtype)),
        y,
        probabilities(dtype, n),
        0.3,
    ),
    "policy_gradient/sparse with a sparse anchor": lambda dtype, n: anchored(
        OBJECTIVES["policy_gradient"](y := labels(n), advantages=signed(dtype, n)), y, sparse(dtype, n), 0.3
    ),
    "truncated_distill/tail, anchored": lambda dtype, n: anchored(
        OBJECTIVES["truncated_distill"](y := labels(n), teacher=sparse(dtype, n), top_k=K, truncation="tail"),
        y,
        factored(dtype, n),
        0.3,
    ),
    "distill/members": lambda dtype, n: OBJECTIVES["distill"](labels(n), teacher=members(dtype, n)),
    "distill/sparse members": lambda dtype, n: OBJECTIVES["distill"](
        labels(n), teacher=[sparse(dtype, n), sparse(dtype, n)]
    ),
    "distill/dense members": lambda dtype, n: OBJECTIVES["distill"](
        labels(n), teacher=[probabilities(dtype, n), probabilities(dtype, n)]
    ),
    "oracle/dense": lambda dtype, n: OBJECTIVES["oracle"](labels(n), oracle=probabilities(dtype, n)),
    "oracle/sparse": lambda dtype, n: OBJECTIVES["oracle"](labels(n), oracle=sparse(dtype, n)),
    "token weights": lambda dtype, n: OBJECTIVES["masked_mle_distill"](
        labels(n), selected=half(n), teacher=factored(dtype, n)
    ).scaled(torch.rand(n, dtype=dtype) * (torch.arange(n) % 4 != 1)),
    "nothing": lambda dtype, n: OBJECTIVES["masked_mle"](labels(n), selected=torch.zeros(n, dtype=torch.bool)),
}

FAMILY: dict[str, Case] = {
    f"{objective}/{weighting}{', anchored' if anchor else ''}{f', {count} members' if count > 1 else ''}": (
        lambda dtype, n, chosen=(objective, weighting, anchor, count): family_case(dtype, n, *chosen)
    )
    for objective in ("mle", "masked_mle", "masked_mle_distill")
    for weighting in TOKEN_WEIGHTINGS
    for anchor in (False, True)
    for count in ((1, 3) if objective == "masked_mle_distill" else (0,))
} | {
    "mle/smoothed": lambda dtype, n: family_case(dtype, n, "mle", "none", False, 0, 0.1),
    "mle/smoothed entirely": lambda dtype, n: family_case(dtype, n, "mle", "none", False, 0, 1.0),
    "masked_mle_distill/everything": lambda dtype, n: family_case(dtype, n, "masked_mle_distill", "eaft", True, 3, 0.1),
}
"""Every token weighting with and without an anchor, and a teacher of one or three members."""

ALL_CASES = CASES | FAMILY


def settled(targets: Targets, logits: torch.Tensor) -> Targets:
    """The same targets with the token weighting of these logits written into their weights, as constants."""
    if targets.token_weighting is None:
        return targets
    return targets.weighted(token_view(logits.detach().log_softmax(-1), targets.ids[:, 0]))
