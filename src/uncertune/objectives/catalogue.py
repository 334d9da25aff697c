"""One function per objective of the paper, each a choice of w (eq. 1), and the dict OBJECTIVES.

Shape legend: ``T`` response tokens, ``V`` vocabulary, ``K`` entries kept of ``V``. Labels are (T,) int64; a label of
−100 (outside the response) has no weight. Probabilities are in [0, 1], never logarithms.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from uncertune.objectives.head import Head
from uncertune.objectives.targets import FactoredTeacher, SparseTeacher, Targets, Teacher, TeacherLike
from uncertune.objectives.weighting import Weighting

IGNORED = -100
Truncation = Literal["plain", "renormalized", "tail"]
Weights = Tensor | tuple[Tensor, Tensor]


class Objective(Protocol):
    """A function from labels and side information to Targets.

    ``uses`` and ``needs`` name its keywords, ``fields`` the configuration fields that belong to it.
    """

    uses: frozenset[str]
    needs: frozenset[str]
    fields: tuple[str, ...]

    def __call__(
        self,
        labels: Tensor,
        *,
        selected: Tensor | None = None,
        teacher: TeacherLike | None = None,
        advantages: Weights | None = None,
        oracle: Weights | None = None,
        **options: Any,
    ) -> Targets: ...


OBJECTIVES: dict[str, Objective] = {}


def _objective(
    needs: tuple[str, ...] = (), options: tuple[str, ...] = (), fields: tuple[str, ...] = ()
) -> Callable[[Callable[..., Targets]], Any]:
    """Register a function by its name; it then raises TypeError for keywords that it cannot use or that are missing."""

    def register(function: Callable[..., Targets]) -> Callable[..., Targets]:
        name = function.__name__

        @functools.wraps(function)
        def checked(labels: Tensor, **given: Any) -> Targets:
            given = {key: value for key, value in given.items() if value is not None}
            for key in given:
                if key not in needs and key not in options:
                    raise TypeError(
                        f"{name} cannot use {key!r}; it takes {', '.join(needs + options) or 'labels only'}"
                    )
            for key in needs:
                if key not in given:
                    raise TypeError(f"{name} needs {key!r}")
            if labels.dim() != 1 or labels.dtype != torch.long:
                raise TypeError(f"labels must be (T,) int64, got {tuple(labels.shape)} {labels.dtype}")
            return function(labels, **given)

        checked.needs = frozenset(needs)  # type: ignore[attr-defined]
        checked.uses = frozenset(needs + options)  # type: ignore[attr-defined]
        checked.fields = fields  # type: ignore[attr-defined]
        OBJECTIVES[name] = checked  # type: ignore[assignment]
        return checked

    return register


_LABEL = ("token_weighting", "label_smoothing")
"""Options of the objectives with a label term: its weight a_t (``uncertune.objectives.weighting``), and the label
smoothing ε ≥ 0, which replaces δ(x = y_t) by ``(1 − ε) · δ(x = y_t) + ε / V`` (SPEC B9, B13)."""


@_objective(options=_LABEL)
def mle(labels: Tensor, *, token_weighting: Weighting | None = None, label_smoothing: float = 0.0) -> Targets:
    """S1, maximum likelihood: ``w_t(x) = δ(x = y_t)``."""
    return _labelled(labels, torch.ones_like(labels, dtype=torch.bool), token_weighting, label_smoothing)


@_objective(needs=("selected",), options=_LABEL, fields=("normalize_by",))
def masked_mle(
    labels: Tensor,
    *,
    selected: Tensor,
    token_weighting: Weighting | None = None,
    label_smoothing: float = 0.0,
) -> Targets:
    """S2, masked MLE: ``w_t(x) = m_t · δ(x = y_t)``, ``selected`` = m (T,) bool. With BALD's mask it is S8."""
    return _labelled(labels, _mask(selected, labels, "selected"), token_weighting, label_smoothing)


@_objective(needs=("teacher",))
def distill(labels: Tensor, *, teacher: TeacherLike) -> Targets:
    """S3, distillation over the full vocabulary: ``w_t(x) = p_ref(x)``."""
    return _taught(labels, labels != IGNORED, teacher)


@_objective(needs=("teacher",), options=("top_k", "truncation"), fields=("teacher_top_k", "teacher_truncation"))
def truncated_distill(
    labels: Tensor, *, teacher: TeacherLike, top_k: int = 64, truncation: Truncation = "plain"
) -> Targets:
    """S4, distillation on X_t, the ``top_k`` most probable tokens of p_ref.

    ``plain`` (the paper): ``w_t(x) = p_ref(x) · δ(x ∈ X_t)``; ``renormalized``: divided by the mass of X_t; ``tail``:
    plain, and the remaining mass is the target of the tokens outside X_t as one bucket (``Targets.tail_weight``).

    ``teacher`` is sparse, of which the ``top_k`` most probable tokens are taken, or (T, V). A factored teacher raises
    TypeError: make it sparse with ``uncertune.fused.linear_top_k``.
    """
    if top_k < 1:
        raise ValueError(f"top_k must be at least 1, got {top_k}")
    if truncation not in ("plain", "renormalized", "tail"):
        raise ValueError(f"truncation must be plain, renormalized or tail, got {truncation!r}")
    if isinstance(teacher, list):
        raise TypeError("truncated_distill takes one teacher: the top-k of a mean of several is not supported")
    teacher = _teacher(teacher)
    if isinstance(teacher, FactoredTeacher):
        raise TypeError("truncated_distill needs a sparse teacher: make it with uncertune.fused.linear_top_k")
    probs, position = (teacher if isinstance(teacher, Tensor) else teacher.probs).topk(
        min(top_k, (teacher if isinstance(teacher, Tensor) else teacher.probs).shape[-1]), dim=-1
    )
    ids = position if isinstance(teacher, Tensor) else teacher.ids.gather(-1, position)
    keep = (labels != IGNORED).to(probs.dtype)
    tail = None
    if truncation == "renormalized":
        probs = probs / probs.sum(-1, keepdim=True)
    elif truncation == "tail":
        tail = (1 - probs.sum(-1)).clamp(min=0) * keep
    return Targets(ids=ids, weights=probs * keep[:, None], tail_weight=tail)


@_objective(needs=("selected", "teacher"), options=_LABEL)
def masked_mle_distill(
    labels: Tensor,
    *,
    selected: Tensor,
    teacher: TeacherLike,
    token_weighting: Weighting | None = None,
    label_smoothing: float = 0.0,
) -> Targets:
    """S5, the paper's method (§4.3): ``δ(x = y_t)`` where selected, ``p_ref(x)`` elsewhere.

    A sparse teacher contributes its top-k, as with ``plain`` truncation. A token weighting multiplies the label's term
    alone.
    """
    selected = _mask(selected, labels, "selected")
    hard = _labelled(labels, selected, token_weighting, label_smoothing)
    return hard.plus(_taught(labels, (labels != IGNORED) & ~selected, teacher))


@_objective(needs=("advantages",), fields=("epsilon", "epsilon_high"))
def policy_gradient(labels: Tensor, *, advantages: Weights) -> Targets:
    """S6, policy gradient: ``w_t(x) = A(x | x_<t)``, signed and detached.

    ``advantages`` is (T,), of the sampled token y_t; (T, V), of every token; or ``(ids, advantages)``, both (T, K),
    whose row may be the sampled token alone. An importance ratio and its clip enter as a weight: ``clipped_advantage``.
    Dense A = p gives ``distill`` (App. B.1).

    ``anchored`` adds the gradient of ``weight · KL(anchor ‖ p)``, exact over the vocabulary. It is the expectation of
    the gradient of GRPO's penalty (the estimator "k3") over tokens sampled from p.
    """
    if not isinstance(advantages, Tensor) or advantages.dim() != 1:
        return _explicit(labels, advantages, "advantages")
    if advantages.shape != labels.shape:
        raise ValueError(f"advantages must be (T,) = {tuple(labels.shape)}, got {tuple(advantages.shape)}")
    weights = torch.where(labels != IGNORED, advantages, torch.zeros_like(advantages))
    return Targets(ids=labels.clamp(min=0)[:, None], weights=weights[:, None])


@_objective(needs=("oracle",))
def oracle(labels: Tensor, *, oracle: Weights) -> Targets:
    """S7, known label noise: ``w_t(x) = p_oracle(x)``, given (T, V) or as ``(ids, probs)``, both (T, K)."""
    return _explicit(labels, oracle, "oracle")


def anchored(targets: Targets, labels: Tensor, anchor: TeacherLike, weight: float) -> Targets:
    """``w_t(x) + weight · p_anchor(x)`` on every response token (SPEC B10).

    The gradient is that of ``weight · KL(p_anchor ‖ p)``, in the forward direction and over the whole vocabulary; the
    loss differs from it by the entropy of the anchor. Weight 0 returns ``targets`` itself.

    Raises ValueError for a negative or non-finite weight.
    """
    if weight < 0:
        raise ValueError(f"anchor_weight must be at least 0, got {weight}")
    if not math.isfinite(weight):
        raise ValueError(f"anchor_weight must be finite, got {weight}")
    if weight == 0:
        return targets
    asked = _taught(labels, labels != IGNORED, anchor)
    return targets.plus(asked.times(torch.full_like(labels, weight, dtype=torch.float64)))


def _mask(mask: Tensor, labels: Tensor, name: str) -> Tensor:
    if mask.shape != labels.shape or mask.dtype != torch.bool:
        raise ValueError(f"{name} must be bool (T,) = {tuple(labels.shape)}, got {mask.dtype} {tuple(mask.shape)}")
    return mask


def _labelled(labels: Tensor, mask: Tensor, token_weighting: Weighting | None, label_smoothing: float) -> Targets:
    if not 0 <= label_smoothing <= 1:
        raise ValueError(f"label_smoothing must be in [0, 1], got {label_smoothing}")
    keep = (mask & (labels != IGNORED)).to(torch.get_default_dtype())
    uniform, weights = None, keep
    if label_smoothing:
        keep = keep.double()
        uniform, weights = label_smoothing * keep, (1 - label_smoothing) * keep
    return Targets(
        ids=labels.clamp(min=0)[:, None],
        weights=weights[:, None],
        uniform_weight=uniform,
        token_weighting=token_weighting,
    )


def _teacher(teacher: Teacher) -> FactoredTeacher | SparseTeacher | Tensor:
    if isinstance(teacher, tuple):
        first, second = teacher
        return FactoredTeacher(first, Head(second)) if first.is_floating_point() else SparseTeacher(first, second)
    return teacher


def _taught(labels: Tensor, mask: Tensor, teacher: TeacherLike) -> Targets:
    """The teacher's distribution on the tokens of ``mask``, no weight elsewhere; of K members each has weight 1/K."""
    if not isinstance(teacher, list):
        return _asked(labels, mask, teacher, 1.0)
    if not teacher:
        raise ValueError("a teacher of several members needs at least one")
    parts = [_asked(labels, mask, member, 1 / len(teacher)) for member in teacher]
    return functools.reduce(Targets.plus, parts)


def _asked(labels: Tensor, mask: Tensor, teacher: Teacher, share: float) -> Targets:
    """``share`` of a distribution on the tokens of ``mask``."""
    teacher = _teacher(teacher)
    if isinstance(teacher, SparseTeacher):
        return Targets(ids=teacher.ids, weights=teacher.probs * share * mask[:, None].to(teacher.probs.dtype))
    if isinstance(teacher, Tensor):
        return _explicit(torch.where(mask, labels, IGNORED), teacher * share, "teacher")
    dtype = torch.float64 if teacher.hidden.dtype == torch.float64 else torch.float32
    nothing = labels.new_zeros(labels.shape[0], 0)
    return Targets(
        ids=nothing,
        weights=nothing.to(dtype),
        teacher_weight=mask.to(dtype) * share,
        teacher_hidden=teacher.hidden,
        teacher_head=teacher.head.weight,
        teacher_bias=teacher.head.bias,
        teacher_softcap=teacher.head.softcap,
        teacher_scale=teacher.head.scale,
    )


def _explicit(labels: Tensor, weights: Weights, name: str) -> Targets:
    """Explicit weights, dense (T, V) or sparse ``(ids, weights)``; none outside the response."""
    keep = labels != IGNORED
    if isinstance(weights, Tensor):
        if weights.dim() != 2 or weights.shape[0] != labels.shape[0]:
            raise ValueError(f"{name} must be (T, V) with T = {labels.shape[0]}, got {tuple(weights.shape)}")
        nothing = labels.new_zeros(labels.shape[0], 0)
        return Targets(ids=nothing, weights=nothing.to(weights.dtype), dense=weights.where(keep[:, None], 0))
    ids, values = weights
    return Targets(ids=ids.where(keep[:, None], 0), weights=values.where(keep[:, None], 0))
