"""``Targets``: the weights of one batch, as in eq. 1 of the paper.

Shape legend: ``T`` response tokens (flattened), ``V`` vocabulary, ``K`` entries kept of ``V``,
``D`` hidden size of a teacher.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from uncertune.objectives.head import Head
from uncertune.objectives.weighting import TokenView, Weighting

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


Teacher = FactoredTeacher | SparseTeacher | Tensor | tuple[Tensor, Tensor]
"""A distribution per token: a teacher above; (T, V) probabilities; ``(ids, probs)`` or ``(hidden, head)``."""

TeacherLike = Teacher | list[Teacher]
"""What objectives accept as p_ref: a teacher, or a list of members, whose distributions are averaged."""


@dataclass(frozen=True)
class FactoredTerm:
    """``weight[t] · softmax(head.logits(hidden[t]))``: a weighted distribution over the whole vocabulary.

    ``weight`` is (T,), ``hidden`` (T, D). A teacher, an anchor and each member of a teacher are such terms.
    """

    weight: Tensor
    hidden: Tensor
    head: Head

    def __post_init__(self) -> None:
        object.__setattr__(self, "weight", self.weight.detach())
        object.__setattr__(self, "hidden", self.hidden.detach())
        object.__setattr__(self, "head", self.head.detached())
        size, head = self.weight.shape[0] if self.weight.dim() else 0, self.head
        if self.weight.dim() != 1:
            raise ValueError(f"teacher_weight must be (T,), got {tuple(self.weight.shape)}")
        if self.hidden.dim() != 2 or self.hidden.shape[0] != size:
            raise ValueError(f"teacher_hidden must be (T, D), T = {size}, got {tuple(self.hidden.shape)}")
        width = self.hidden.shape[1]
        if head.weight.dim() != 2 or head.weight.shape[1] != width:
            raise ValueError(f"teacher_head must be (V, D) with D = {width}, got {tuple(head.weight.shape)}")
        if head.bias is not None and head.bias.shape != (head.vocabulary,):
            raise ValueError(f"teacher_bias must be (V,), got {tuple(head.bias.shape)}")

    def rows(self, index: Tensor | slice) -> FactoredTerm:
        """The term of some tokens."""
        return FactoredTerm(self.weight[index], self.hidden[index], self.head)

    def scaled(self, factor_T: Tensor) -> FactoredTerm:
        """The term with the weight of token t multiplied by ``factor_T[t]``."""
        return replace(self, weight=self.weight * factor_T.to(self.weight.dtype))


@dataclass(frozen=True)
class Targets:
    """The weights w_t(x) of T tokens: a sparse part, factored rows over the vocabulary, and an explicit dense part.

    ::

        w_t(x) = Σ_k weights[t,k] · δ(x = ids[t,k])
               + teacher_weight[t] · softmax(cap(teacher_scale · (teacher_hidden[t] · teacher_headᵀ + teacher_bias)))[x]
               + Σ_i further[i].weight[t] · softmax(further[i].head.logits(further[i].hidden[t]))[x]
               + uniform_weight[t] / V
               + dense[t,x]

    and, beside eq. 1, the tail bucket of a truncated teacher (SPEC S4):
    ``tail_weight[t] · (LSE(z) − log Σ_{x ∉ ids[t]} exp z[x])``.

    Shapes: ids (T, K) int64, weights (T, K) float, K may be 0; teacher_weight (T,); teacher_hidden (T, D);
    teacher_head (V, D); teacher_bias (V,); uniform_weight (T,); tail_weight (T,), whose bucket is all tokens that
    ``ids`` does not list; dense (T, V) with V ≤ 4096. ``factored`` lists the teacher's term and ``further``.

    ``token_weighting`` is a function of the student's statistics. Once the logits are known, it multiplies the term of
    the label ``ids[:, 0]``: the first column of ``weights``, and ``uniform_weight``.

    Weights are constants in the gradient: every tensor is detached here.

    Raises ValueError if shapes or types do not fit, and for a dense part over a larger vocabulary.
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
    further: tuple[FactoredTerm, ...] = ()
    uniform_weight: Tensor | None = None
    token_weighting: Weighting | None = None

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, Tensor):
                object.__setattr__(self, field.name, value.detach())
        self._check_sparse()
        self._check_factored()
        self._check_dense()

    @property
    def size(self) -> int:
        """T, the number of tokens."""
        return self.ids.shape[0]

    @functools.cached_property
    def factored(self) -> tuple[FactoredTerm, ...]:
        """Every factored term: the teacher, then ``further``."""
        if self.teacher_weight is None or self.teacher_hidden is None or self.teacher_head is None:
            return self.further
        head = Head(self.teacher_head, self.teacher_bias, self.teacher_softcap, self.teacher_scale)
        return (FactoredTerm(self.teacher_weight, self.teacher_hidden, head), *self.further)

    def _check_sparse(self) -> None:
        if self.ids.dim() != 2 or self.ids.shape != self.weights.shape:
            raise ValueError(
                f"ids and weights must both be (T, K), got {tuple(self.ids.shape)} and {tuple(self.weights.shape)}"
            )
        if self.ids.dtype != torch.long:
            raise ValueError(f"ids must be int64, got {self.ids.dtype}")
        if not self.weights.is_floating_point():
            raise ValueError(f"weights must be floating point, got {self.weights.dtype}")
        for name in ("tail_weight", "uniform_weight"):
            part = getattr(self, name)
            if part is not None and part.shape != (self.size,):
                raise ValueError(f"{name} must be (T,) = ({self.size},), got {tuple(part.shape)}")
        if self.token_weighting is not None and self.ids.shape[1] == 0:
            raise ValueError("token_weighting needs the label in the first column of ids")

    def _check_factored(self) -> None:
        parts = (self.teacher_weight, self.teacher_hidden, self.teacher_head)
        if all(part is None for part in parts):
            if self.teacher_bias is not None:
                raise ValueError("teacher_bias is given without a teacher")
        elif any(part is None for part in parts):
            raise ValueError("a factored teacher needs teacher_weight, teacher_hidden and teacher_head together")
        for term in self.factored:
            if term.weight.shape != (self.size,):
                raise ValueError(f"teacher_weight must be (T,) = ({self.size},), got {tuple(term.weight.shape)}")

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
        """(T,) bool: the rows that have any weight. The others have zero loss and zero gradient."""
        mask = (self.weights != 0).any(-1)
        for part in (*(term.weight for term in self.factored), self.tail_weight, self.uniform_weight):
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
            further=tuple(term.rows(index) for term in self.further),
            tail_weight=take(self.tail_weight),
            uniform_weight=take(self.uniform_weight),
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
        return self.times(token_weight)

    def times(self, factor_T: Tensor) -> Targets:
        """Every weight of token t multiplied by ``factor_T[t]``, which is not checked."""
        return replace(
            self,
            weights=self.weights * factor_T.to(self.weights.dtype)[:, None],
            teacher_weight=_times(self.teacher_weight, factor_T),
            further=tuple(term.scaled(factor_T) for term in self.further),
            tail_weight=_times(self.tail_weight, factor_T),
            uniform_weight=_times(self.uniform_weight, factor_T),
            dense=_times(self.dense, factor_T),
        )

    def weighted(self, view: TokenView) -> Targets:
        """The same weights with ``token_weighting`` applied to the label's term."""
        assert self.token_weighting is not None
        weight_T = self.token_weighting(view)
        weights = self.weights.to(weight_T.dtype, copy=True)
        weights[:, 0] *= weight_T
        uniform = _times(self.uniform_weight, weight_T)
        return replace(self, weights=weights, uniform_weight=uniform, token_weighting=None)

    def plus(self, other: Targets) -> Targets:
        """The sum of two sets of weights over the same tokens. Raises ValueError if a tail bucket would change."""
        if (self.tail_weight is not None and other.ids.shape[1]) or other.tail_weight is not None:
            raise ValueError("a tail bucket is all tokens that ids does not list: nothing sparse can be added to it")
        if other.token_weighting is not None:
            raise ValueError("token_weighting belongs to the first of two sets of weights")
        dtype = torch.promote_types(self.weights.dtype, other.weights.dtype)
        first, further = (self, other.factored) if self.teacher_weight is not None else (other, other.further)
        return replace(
            self,
            ids=torch.cat([self.ids, other.ids], -1),
            weights=torch.cat([self.weights.to(dtype), other.weights.to(dtype)], -1),
            **{name: getattr(first, name) for name in _TEACHER},
            further=self.further + further,
            uniform_weight=_sum(self.uniform_weight, other.uniform_weight),
            dense=_sum(self.dense, other.dense),
        )


_TEACHER = tuple(one.name for one in fields(Targets) if one.name.startswith("teacher_"))


def _times(part: Tensor | None, factor_T: Tensor) -> Tensor | None:
    if part is None:
        return None
    factor_T = factor_T.to(part.dtype)
    return part * (factor_T if part.dim() == 1 else factor_T[:, None])


def _sum(left: Tensor | None, right: Tensor | None) -> Tensor | None:
    return right if left is None else left if right is None else left + right
