"""Element-wise functions of a chunk of logits: normalisers, entropies and gradients, in plain torch.

Shape legend: ``t`` tokens of a chunk, ``V`` vocabulary, ``K`` entries kept of ``V``.

Every function takes the products ``raw`` (t, V) of the matrix multiplication and computes the logits on the fly:
``z = cap(scale · (raw + offset + bias))``. ``offset`` (t,) keeps half-precision products small, so that rounding loses
less (``projection.py``). All arithmetic is in float32, or float64 for float64 products.

The functions have no side effects except on an argument ``out``, so that ``torch.compile`` fuses each into one pass
(``kernels.py``); ``triton.py`` has the same functions as Triton kernels.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from uncertune.objectives.head import Finish, finish_logits, slope


class Teacher(NamedTuple):
    """The products of a teacher on the same tokens, (t, V).

    ``delta``: they are ``student − teacher`` products through one shared head, which keeps their difference exact to
    the last digit however close the two are; their own otherwise.
    """

    raw: Tensor
    finish: Finish
    delta: bool


def exact_dtype(dtype: torch.dtype) -> torch.dtype:
    """The precision of logits, losses and accumulated gradients for products of ``dtype``."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def finished(raw: Tensor, offset_t: Tensor | None, finish: Finish) -> Tensor:
    """Logits of products; ``raw`` is (t, V), or (t, K) with ``finish.bias`` of the same shape."""
    return finish_logits(_shifted(raw, offset_t), finish)


def _shifted(raw: Tensor, offset_t: Tensor | None) -> Tensor:
    u = raw.to(exact_dtype(raw.dtype))
    return u if offset_t is None else u + offset_t[:, None]


def statistics(raw_tV: Tensor, offset_t: Tensor | None, finish: Finish) -> tuple[Tensor, Tensor, Tensor]:
    """(log-sum-exp, entropy in nats, first most likely token) of each row, (t,)."""
    z_tV = finished(raw_tV, offset_t, finish)
    top_t = z_tV.amax(-1)
    z_tV = z_tV - top_t[:, None]
    e_tV = z_tV.exp()
    norm_t = e_tV.sum(-1)
    entropy_t = norm_t.log() - (e_tV * z_tV).sum(-1) / norm_t
    return top_t + norm_t.log(), entropy_t.clamp(min=0), z_tV.argmax(-1)


def teacher_statistics(
    raw_tV: Tensor, offset_t: Tensor | None, finish: Finish, teacher: Teacher
) -> tuple[Tensor, Tensor, Tensor]:
    """Of each row: log-sum-exp of the teacher's logits y, and the expectations of z and y − z under the teacher."""
    z_tV, teacher_tV = _both(raw_tV, offset_t, finish, teacher)
    top_t = teacher_tV.amax(-1)
    e_tV = (teacher_tV - top_t[:, None]).exp()
    norm_t = e_tV.sum(-1)
    gap_t = (e_tV * (teacher_tV - z_tV)).sum(-1) / norm_t
    return top_t + norm_t.log(), (e_tV * z_tV).sum(-1) / norm_t, gap_t


def mean_logit(raw_tV: Tensor, offset_t: Tensor | None, finish: Finish) -> tuple[Tensor]:
    """The mean logit of each row, (t,), as a tuple of one."""
    return (finished(raw_tV, offset_t, finish).mean(-1),)


def add_probabilities(
    raw_tV: Tensor,
    offset_t: Tensor | None,
    teacher: Teacher,
    teacher_norm_t: Tensor,
    teacher_weight_t: Tensor,
    out_tV: Tensor,
) -> None:
    """Add ``teacher_weight · exp(teacher's z − teacher_norm)`` to ``out``, in the exact precision."""
    teacher_tV = _teacher_logits(_shifted(raw_tV, offset_t), teacher)
    out_tV.add_((teacher_tV - teacher_norm_t[:, None]).exp() * teacher_weight_t[:, None])


def _both(raw_tV: Tensor, offset_t: Tensor | None, finish: Finish, teacher: Teacher) -> tuple[Tensor, Tensor]:
    u_tV = _shifted(raw_tV, offset_t)
    return finish_logits(u_tV, finish), _teacher_logits(u_tV, teacher)


def _teacher_logits(u_tV: Tensor, teacher: Teacher) -> Tensor:
    other_tV = teacher.raw.to(u_tV.dtype)
    return finish_logits(u_tV - other_tV if teacher.delta else other_tV, teacher.finish)


def gradient(
    raw_tV: Tensor,
    offset_t: Tensor | None,
    finish: Finish,
    log_norm_t: Tensor,
    mass_t: Tensor,
    uniform_t: Tensor | None,
    out_tV: Tensor,
) -> None:
    """``out = (mass · exp(z − log_norm) − uniform) · dz/d(raw)``, rounded once; ``out`` may be ``raw``."""
    z_tV = finished(raw_tV, offset_t, finish)
    p_tV = (z_tV - log_norm_t[:, None]).exp() * mass_t[:, None]
    if uniform_t is not None:
        p_tV = p_tV - uniform_t[:, None]
    out_tV.copy_(p_tV * slope(z_tV, finish))


def taught_gradient(
    raw_tV: Tensor,
    offset_t: Tensor | None,
    finish: Finish,
    log_norm_t: Tensor,
    mass_t: Tensor,
    uniform_t: Tensor | None,
    teacher: Teacher,
    teacher_norm_t: Tensor,
    teacher_weight_t: Tensor,
    mixture_tV: Tensor | None,
    out_tV: Tensor,
) -> None:
    """``gradient`` less ``(teacher_weight · exp(teacher's z − teacher_norm) + mixture) · dz/d(raw)``; rounded once.

    ``mixture`` (t, V) is the weighted sum of the distributions of further teachers.
    """
    z_tV, teacher_tV = _both(raw_tV, offset_t, finish, teacher)
    p_tV = (z_tV - log_norm_t[:, None]).exp() * mass_t[:, None]
    if uniform_t is not None:
        p_tV = p_tV - uniform_t[:, None]
    q_tV = (teacher_tV - teacher_norm_t[:, None]).exp() * teacher_weight_t[:, None]
    if mixture_tV is not None:
        q_tV = q_tV + mixture_tV
    out_tV.copy_((p_tV - q_tV) * slope(z_tV, finish))


TOP_BLOCK = 64


def top_logits(raw_tV: Tensor, offset_t: Tensor | None, finish: Finish, k: int) -> Tensor:
    """The ``k`` largest logits of each row, (t, k), largest first.

    Without a bias, products have the order of logits, so only k logits are computed. The k largest values are in the k
    blocks of ``TOP_BLOCK`` columns with the largest maxima, which one pass finds.
    """
    by_product = finish.bias is None and finish.scale > 0
    values_tV = raw_tV if by_product else finished(raw_tV, offset_t, finish)
    whole = values_tV.shape[1] - values_tV.shape[1] % TOP_BLOCK
    if whole > k * TOP_BLOCK:
        blocks_tNB = values_tV[:, :whole].unflatten(1, (-1, TOP_BLOCK))
        best_tk = blocks_tNB.amax(-1).topk(k, dim=-1).indices
        kept_tC = blocks_tNB.gather(1, best_tk[:, :, None].expand(-1, -1, TOP_BLOCK)).flatten(1)
        values_tV = torch.cat([kept_tC, values_tV[:, whole:]], 1)
    top_tk = values_tV.topk(k, dim=-1).values
    return finished(top_tk, offset_t, finish) if by_product else top_tk
