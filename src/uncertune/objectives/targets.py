"""``Targets``: the weights of one batch, eq. 1 of the paper taken literally.

Shape legend: ``T`` response tokens (flattened), ``V`` vocabulary, ``K`` entries kept of ``V``,
``D`` hidden size of a teacher.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from uncertune.objectives.head import Head

MAX_DENSE_VOCABULARY = 4096
"""Largest vocabulary for which an explicit (T, V) tensor of weights is accepted."""


@dataclass(frozen=True)
class FactoredTeacher:
    """A full-vocabulary teacher without a (T, V) tensor: ``p_ref = softmax(head.logits(hidden))``, hidden (T, D)."""

    hidden: Tensor
    head: Head


@dataclass(frozen=True)
class SparseTeacher:
    """The K most probable tokens of a teacher: ``ids`` (T, K) and their probabilities ``probs`` (T, K).

    The probabilities are those of the whole vocabulary, so that ``1 - probs.sum(-1)`` is the mass of the tail.
    """

    ids: Tensor
    probs: Tensor


TeacherLike = FactoredTeacher | SparseTeacher | Tensor | tuple[Tensor, Tensor]
"""What objectives accept as p_ref: a teacher above; (T, V) probabilities; ``(ids, probs)`` or ``(hidden, head)``."""


@dataclass(frozen=True)
class Targets:
    """The weights w_t(x) of T tokens: a sparse part, one factored dense row each, and an explicit dense part.

    ::

        w_t(x) = Σ_k weights[t,k] · δ(x = ids[t,k])
               + teacher_weight[t] · softmax(cap(teacher_scale · (teacher_hidden[t] · teacher_headᵀ + teacher_bias)))[x]
               + dense[t,x]

    and, beside eq. 1, the tail bucket of a truncated teacher (SPEC S4):
    ``tail_weight[t] · (LSE(z) − log Σ_{x ∉ ids[t]} exp z[x])``.

    Shapes: ids (T, K) int64, weights (T, K) float, K may be 0; teacher_weight (T,); teacher_hidden (T, D);
    teacher_head (V, D); teacher_bias (V,); tail_weight (T,), whose bucket is all tokens that ``ids`` does not list;
    dense (T, V) with V ≤ 4096.

    Weights are constants in the gradient: every tensor is detached here.

    Raises ValueError where shapes or types do not fit, and for a dense part over a larger vocabulary.
    """

    ids: Tensor
    weights: Tensor
    teacher_weight: Tensor | None = None
    teacher_hidden: Tensor | None = None
    teacher_head: Tensor | None = None
    teacher_bias: Tensor | None = None
    teacher_softcap: float | None = None
    teacher_scale: float = 1.0
    tail_weight: Tensor | None = None
    dense: Tensor | None = None

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, Tensor):
                object.__setattr__(self, field.name, value.detach())
        self._check_sparse()
        self._check_teacher()
        self._check_dense()

    @property
    def size(self) -> int:
        """T, the number of tokens."""
        return self.ids.shape[0]

    def _check_sparse(self) -> None:
        if self.ids.dim() != 2 or self.ids.shape != self.weights.shape:
            raise ValueError(
                f"ids and weights must both be (T, K), got {tuple(self.ids.shape)} and {tuple(self.weights.shape)}"
            )
        if self.ids.dtype != torch.long:
            raise ValueError(f"ids must be int64, got {self.ids.dtype}")
        if not self.weights.is_floating_point():
            raise ValueError(f"weights must be floating point, got {self.weights.dtype}")
        if self.tail_weight is not None and self.tail_weight.shape != (self.size,):
            raise ValueError(f"tail_weight must be (T,) = ({self.size},), got {tuple(self.tail_weight.shape)}")

    def _check_teacher(self) -> None:
        parts = (self.teacher_weight, self.teacher_hidden, self.teacher_head)
        if all(part is None for part in parts):
            if self.teacher_bias is not None:
                raise ValueError("teacher_bias is given without a teacher")
            return
        if self.teacher_weight is None or self.teacher_hidden is None or self.teacher_head is None:
            raise ValueError("a factored teacher needs teacher_weight, teacher_hidden and teacher_head together")
        if self.teacher_weight.shape != (self.size,):
            raise ValueError(f"teacher_weight must be (T,) = ({self.size},), got {tuple(self.teacher_weight.shape)}")
        if self.teacher_hidden.dim() != 2 or self.teacher_hidden.shape[0] != self.size:
            raise ValueError(f"teacher_hidden must be (T, D), T = {self.size}, got {tuple(self.teacher_hidden.shape)}")
        width = self.teacher_hidden.shape[1]
        if self.teacher_head.dim() != 2 or self.teacher_head.shape[1] != width:
            raise ValueError(f"teacher_head must be (V, D) with D = {width}, got {tuple(self.teacher_head.shape)}")
        if self.teacher_bias is not None and self.teacher_bias.shape != (self.teacher_head.shape[0],):
            raise ValueError(f"teacher_bias must be (V,), got {tuple(self.teacher_bias.shape)}")

    def _check_dense(self) -> None:
        if self.dense is None:
            return
        if self.dense.dim() != 2 or self.dense.shape[0] != self.size:
            raise ValueError(f"dense must be (T, V), T = {self.size}, got {tuple(self.dense.shape)}")
        if self.dense.shape[1] > MAX_DENSE_VOCABULARY:
            raise ValueError(
                f"dense weights over a vocabulary of {self.dense.shape[1]} are refused (at most "
                f"{MAX_DENSE_VOCABULARY}): give them as a sparse (ids, weights) pair or a factored teacher"
            )

    def row_mask(self) -> Tensor:
        """(T,) bool: the rows that have any weight at all. The others have zero loss and zero gradient."""
        mask = (self.weights != 0).any(-1)
        for part in (self.teacher_weight, self.tail_weight):
            if part is not None:
                mask = mask | (part != 0)
        if self.dense is not None:
            mask = mask | (self.dense != 0).any(-1)
        return mask

    def rows(self, index: Tensor | slice) -> Targets:
        """The targets of some tokens: ``index`` is a slice, a (T,) bool mask or int64 positions."""

        def take(part: Tensor | None) -> Tensor | None:
            return None if part is None else part[index]

        return replace(
            self,
            ids=self.ids[index],
            weights=self.weights[index],
            teacher_weight=take(self.teacher_weight),
            teacher_hidden=take(self.teacher_hidden),
            tail_weight=take(self.tail_weight),
            dense=take(self.dense),
        )

    def scaled(self, token_weight: Tensor) -> Targets:
        """Every weight of token t multiplied by ``token_weight[t]`` ≥ 0 (noise weights, SPEC S7b, App. B).

        Raises ValueError for another shape, and for negative or non-finite weights.
        """
        if token_weight.shape != (self.size,):
            raise ValueError(f"token_weight must be (T,) = ({self.size},), got {tuple(token_weight.shape)}")
        token_weight = token_weight.detach()
        if not bool(((token_weight >= 0) & token_weight.isfinite()).all()):
            raise ValueError("token_weight must be finite and at least 0")

        def times(part: Tensor | None) -> Tensor | None:
            if part is None:
                return None
            factor = token_weight.to(part.dtype)
            return part * (factor if part.dim() == 1 else factor[:, None])

        return replace(
            self,
            weights=self.weights * token_weight.to(self.weights.dtype)[:, None],
            teacher_weight=times(self.teacher_weight),
            tail_weight=times(self.tail_weight),
            dense=times(self.dense),
        )
