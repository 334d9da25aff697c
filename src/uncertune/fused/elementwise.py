"""What is computed of a chunk of logits besides the products: normalisers, entropies and gradients, in plain torch.

Shape legend: ``t`` tokens of a chunk, ``V`` vocabulary, ``K`` entries kept of ``V``.

Every function starts from products ``raw`` (t, V) as the matrix multiplication left them, and finishes them to logits
on the fly: ``z = cap(scale · (raw + offset + bias))``. Half-precision products lose least where ``offset`` (t,) took
away what they have in common (``projection.py``). All arithmetic is in float32, or float64 for float64 products.

The functions are free of side effects but for ``gradient``, which overwrites what it is told to, so that
``torch.compile`` makes one pass of each (``kernels.py``); ``triton.py`` has the same functions by hand.
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
) -> tuple[Tensor, Tensor]:
    """(log-sum-exp of the teacher, student's logit expected under the teacher) of each row, (t,)."""
    z_tV, teacher_tV = _both(raw_tV, offset_t, finish, teacher)
    top_t = teacher_tV.amax(-1)
    e_tV = (teacher_tV - top_t[:, None]).exp()
    norm_t = e_tV.sum(-1)
    return top_t + norm_t.log(), (e_tV * z_tV).sum(-1) / norm_t


def _both(raw_tV: Tensor, offset_t: Tensor | None, finish: Finish, teacher: Teacher) -> tuple[Tensor, Tensor]:
    u_tV = _shifted(raw_tV, offset_t)
    other_tV = teacher.raw.to(u_tV.dtype)
    return finish_logits(u_tV, finish), finish_logits(u_tV - other_tV if teacher.delta else other_tV, teacher.finish)


def gradient(
    raw_tV: Tensor, offset_t: Tensor | None, finish: Finish, log_norm_t: Tensor, mass_t: Tensor, out_tV: Tensor
) -> None:
    """``out = mass · exp(z − log_norm) · dz/d(raw)``, rounded once; ``out`` may be ``raw``."""
    z_tV = finished(raw_tV, offset_t, finish)
    out_tV.copy_((z_tV - log_norm_t[:, None]).exp() * mass_t[:, None] * slope(z_tV, finish))


def taught_gradient(
    raw_tV: Tensor,
    offset_t: Tensor | None,
    finish: Finish,
    log_norm_t: Tensor,
    mass_t: Tensor,
    teacher: Teacher,
    teacher_norm_t: Tensor,
    teacher_weight_t: Tensor,
    out_tV: Tensor,
) -> None:
    """``gradient`` less ``teacher_weight · exp(teacher's z − teacher_norm) · dz/d(raw)``; rounded once."""
    z_tV, teacher_tV = _both(raw_tV, offset_t, finish, teacher)
    p_tV = (z_tV - log_norm_t[:, None]).exp() * mass_t[:, None]
    q_tV = (teacher_tV - teacher_norm_t[:, None]).exp() * teacher_weight_t[:, None]
    out_tV.copy_((p_tV - q_tV) * slope(z_tV, finish))
