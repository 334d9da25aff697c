"""One chunk of tokens: its products, its loss, and the gradient.

Shape legend: ``t`` tokens of the chunk, ``V`` vocabulary, ``D`` hidden size, ``K`` entries kept of ``V``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from uncertune.fused.elementwise import Teacher, finished, top_logits
from uncertune.fused.kernels import kernels
from uncertune.fused.projection import Projection, TokenStats
from uncertune.objectives import FactoredTerm, Targets
from uncertune.objectives.head import Finish, slope
from uncertune.objectives.weighting import TokenView

FAR = 8.0
"""Nats between the label and the most likely token above which products relative to the label are too inexact. Up to
this distance bfloat16 has an error of at most one percent of a probability (root mean square). About 2 % of the tokens
of real text are farther apart and are projected again."""


class Work:
    """Chunk-sized buffers, allocated once and used for every chunk of a sweep."""

    def __init__(self, projection: Projection, rows: int) -> None:
        self.projection, self.rows = projection, rows
        self.buffers: dict[tuple[str, torch.dtype], Tensor] = {}

    def get(self, name: str, rows: int, dtype: torch.dtype) -> Tensor:
        if (name, dtype) not in self.buffers:
            shape = (self.rows, self.projection.vocabulary)
            self.buffers[name, dtype] = torch.empty(shape, dtype=dtype, device=self.projection.head.device)
        return self.buffers[name, dtype][:rows]

    def raw(self, rows: int) -> Tensor:
        return self.get("raw", rows, self.projection.stored)


class Measured(NamedTuple):
    """The products of some tokens and their ``statistics``."""

    raw: Tensor
    offset: Tensor | None
    log_norm: Tensor
    entropy: Tensor
    top: Tensor

    def write(self, stats: TokenStats, rows: Tensor | slice, labels_t: Tensor, finish: Finish) -> None:
        stats.loss[rows] = self.log_norm - at_ids(self.raw, self.offset, finish, labels_t[:, None])[:, 0]
        stats.entropy[rows] = self.entropy
        stats.correct[rows] = self.top == labels_t


def measure(projection: Projection, hidden_tD: Tensor, labels_t: Tensor | None, out_tV: Tensor | None) -> Measured:
    """Products; rounded ones are relative to the label, or to the most likely token if that is far from the label."""
    offset_t = None if labels_t is None else projection.offset(hidden_tD, labels_t)
    raw_tV = projection.products(hidden_tD, offset_t, out_tV)
    log_norm_t, entropy_t, top_t = kernels(raw_tV).statistics(raw_tV, offset_t, projection.finish)
    if offset_t is not None and labels_t is not None:
        z_t2 = at_ids(raw_tV, offset_t, projection.finish, torch.stack([labels_t, top_t], 1))
        far_s = (z_t2[:, 1] - z_t2[:, 0] > FAR).nonzero()[:, 0]
        if far_s.numel():
            offset_s = projection.offset(hidden_tD[far_s], top_t[far_s])
            assert offset_s is not None
            offset_t[far_s] = offset_s
            raw_sV = projection.products(hidden_tD[far_s], offset_s)
            raw_tV[far_s] = raw_sV
            log_norm_t[far_s], entropy_t[far_s], top_t[far_s] = kernels(raw_sV).statistics(
                raw_sV, offset_s, projection.finish
            )
    return Measured(raw_tV, offset_t, log_norm_t, entropy_t, top_t)


class Source(NamedTuple):
    """The source of a factored term's products; ``shared``: through the student's head."""

    projection: Projection
    shared: bool


@dataclass(frozen=True)
class Chunk:
    """Some tokens, their targets, and the student's products and normalisers."""

    targets: Targets
    hidden: Tensor
    raw: Tensor
    offset: Tensor | None
    finish: Finish
    log_norm: Tensor
    entropy: Tensor

    def at(self, ids_tK: Tensor) -> Tensor:
        """The logits of some tokens of each row, (t, K)."""
        return at_ids(self.raw, self.offset, self.finish, ids_tK)

    def view(self) -> TokenView:
        """The input of a token weighting, from the logits of the chunk."""
        return TokenView(
            log_prob=self.at(self.targets.ids[:, :1])[:, 0] - self.log_norm,
            entropy=self.entropy,
            top_logits=lambda k: top_logits(self.raw, self.offset, self.finish, min(k, self.raw.shape[1])),
        )


def at_ids(raw_tV: Tensor, offset_t: Tensor | None, finish: Finish, ids_tK: Tensor) -> Tensor:
    """The logits of some tokens of each row, (t, K)."""
    bias = None if finish.bias is None else finish.bias[ids_tK]
    return finished(raw_tV.gather(-1, ids_tK), offset_t, finish._replace(bias=bias))


class Terms(NamedTuple):
    """Intermediate results of a chunk's loss that its gradient needs."""

    mass: Tensor
    """Σ_x w(x), including the tail's weight, (t,)."""
    tail: Tensor | None
    rest: Tensor | None
    """Log-sum-exp of the tail bucket."""


def label_and_dense_loss(chunk: Chunk) -> tuple[Tensor, Terms]:
    """``Σ_x w(x) · (LSE(z) − z[x])`` of all but the factored terms, and the tail bucket's term, (t,)."""
    targets, log_norm_t = chunk.targets, chunk.log_norm
    dtype = log_norm_t.dtype
    weights_tK = targets.weights.to(dtype)
    mass_t = weights_tK.sum(-1)
    loss_t = (weights_tK * (log_norm_t[:, None] - chunk.at(targets.ids))).sum(-1)
    if targets.uniform_weight is not None:
        uniform_t = targets.uniform_weight.to(dtype)
        (mean_t,) = kernels(chunk.raw).mean_logit(chunk.raw, chunk.offset, chunk.finish)
        mass_t = mass_t + uniform_t
        loss_t += uniform_t * (log_norm_t - mean_t)
    if targets.dense is not None:
        dense_tV = targets.dense.to(dtype)
        mass_t = mass_t + dense_tV.sum(-1)
        loss_t += (dense_tV * (log_norm_t[:, None] - finished(chunk.raw, chunk.offset, chunk.finish))).sum(-1)
    tail_t, rest_t = None, None
    if targets.tail_weight is not None:
        others_tV = finished(chunk.raw, chunk.offset, chunk.finish).scatter(-1, targets.ids, float("-inf"))
        rest_t = others_tV.logsumexp(-1)
        tail_t = torch.where(rest_t == float("-inf"), 0, targets.tail_weight.to(dtype))  # an empty bucket has no term
        rest_t = torch.where(tail_t == 0, log_norm_t, rest_t)
        mass_t = mass_t + tail_t
        loss_t += tail_t * (log_norm_t - rest_t)
    return loss_t, Terms(mass_t, tail_t, rest_t)


class Taught(NamedTuple):
    """Sums of the factored terms of a chunk."""

    loss: Tensor
    mass: Tensor
    """Both (t,)."""
    cross_entropy: Tensor
    divergence: Tensor
    """Both (n, t), in nats, of the student under each of n terms; the divergence is KL(term ‖ student)."""
    listed: Tensor
    """Their weights on the tokens of the sparse part, (t, K)."""
    last: tuple[Teacher, Tensor, Tensor] | None
    """The last term: its products, normaliser and weight."""
    mixture: Tensor | None
    """The weights of all the other terms, (t, V)."""


def factored_loss(
    chunk: Chunk, terms: Sequence[FactoredTerm], sources: Sequence[Source], student: Projection, work: Work
) -> Taught:
    """The loss of factored terms, one after the other, each projected once, with one shared buffer.

    All but the last add their distributions to a mixture, so that the sum is rounded once.
    """
    run, dtype, ids_tK = kernels(chunk.raw), chunk.log_norm.dtype, chunk.targets.ids
    loss_t, mass_t = torch.zeros_like(chunk.log_norm), torch.zeros_like(chunk.log_norm)
    listed_tK = chunk.log_norm.new_zeros(ids_tK.shape)
    cross_nt, divergence_nt = [], []
    mixture_tV, last = None, None
    for term, source in zip(terms, sources, strict=True):
        if last is not None:
            if mixture_tV is None:
                mixture_tV = work.get("mixture", len(loss_t), dtype).zero_()
            run.add_probabilities(chunk.raw, chunk.offset, *last, mixture_tV)
        teacher = _products(chunk.hidden, term, source, student, work)
        norm_t, expected_t, gap_t = run.teacher_statistics(chunk.raw, chunk.offset, chunk.finish, teacher)
        weight_t = term.weight.to(dtype)
        cross_nt.append(chunk.log_norm - expected_t)
        divergence_nt.append(gap_t - norm_t + chunk.log_norm)
        mass_t = mass_t + weight_t
        loss_t = loss_t + weight_t * cross_nt[-1]
        listed_tK = listed_tK + weight_t[:, None] * _listed_probabilities(chunk, teacher, norm_t)
        last = teacher, norm_t, weight_t
    return Taught(loss_t, mass_t, torch.stack(cross_nt), torch.stack(divergence_nt), listed_tK, last, mixture_tV)


def _products(hidden_tD: Tensor, term: FactoredTerm, source: Source, student: Projection, work: Work) -> Teacher:
    """A term's products; with a shared head, those of the difference of the hidden states, (h − h_ref) headᵀ."""
    teacher_tD = term.hidden
    if source.shared:
        exact, compute = student.exact, student.compute
        teacher_tD = hidden_tD.to(compute).to(exact) - teacher_tD.to(compute).to(exact)
    out_tV = work.get("teacher", len(teacher_tD), source.projection.stored)
    return Teacher(source.projection.products(teacher_tD, None, out_tV), source.projection.finish, source.shared)


def _listed_probabilities(chunk: Chunk, teacher: Teacher, norm_t: Tensor) -> Tensor:
    """The teacher's probabilities of the sparse part's tokens, (t, K)."""
    ids_tK, dtype, offset_t = chunk.targets.ids, chunk.log_norm.dtype, None
    raw_tK = teacher.raw.gather(-1, ids_tK)
    if teacher.delta:
        raw_tK, offset_t = chunk.raw.gather(-1, ids_tK).to(dtype) - raw_tK.to(dtype), chunk.offset
    bias = None if teacher.finish.bias is None else teacher.finish.bias[ids_tK]
    return (finished(raw_tK, offset_t, teacher.finish._replace(bias=bias)) - norm_t[:, None]).exp()


def gradient(chunk: Chunk, terms: Terms, taught: Taught | None, factor: Tensor | float, work: Work) -> Tensor:
    """``((Σ_x w) · softmax(z) − w) · dz/d(raw) · factor``, (t, V), in place of the products if possible.

    Entries with sparse weights are computed separately in full precision and overwrite those of the dense pass.
    """
    targets, log_norm_t, head = chunk.targets, chunk.log_norm, work.projection.head
    dtype, run = log_norm_t.dtype, kernels(chunk.raw)
    column = factor[:, None] if isinstance(factor, Tensor) else factor
    total_t = terms.mass if taught is None else terms.mass + taught.mass
    uniform_t = None
    if targets.uniform_weight is not None:
        uniform_t = targets.uniform_weight.to(dtype) / chunk.raw.shape[1] * factor
    entries_tK = _listed_gradient(chunk, total_t, taught) * column
    dense_tV = None
    if targets.dense is not None:
        z_tV = finished(chunk.raw, chunk.offset, chunk.finish)
        dense_tV = targets.dense.to(dtype) * slope(z_tV, chunk.finish) * column
    out_tV = chunk.raw
    if chunk.raw.dtype != head.dtype:
        out_tV = work.get("gradient", targets.size, head.dtype)
    norm_t, mass_t = log_norm_t, total_t
    if terms.tail is not None and terms.rest is not None:  # M · p − tail · p_rest, as one multiple of p_rest
        norm_t, mass_t = terms.rest, total_t * (terms.rest - log_norm_t).exp() - terms.tail
    student = (chunk.raw, chunk.offset, chunk.finish, norm_t, mass_t * factor, uniform_t)
    if taught is None or taught.last is None:
        run.gradient(*student, out_tV)
    else:
        teacher, teacher_norm_t, weight_t = taught.last
        mixture_tV = taught.mixture
        if mixture_tV is not None:
            mixture_tV.mul_(column)
        run.taught_gradient(*student, teacher, teacher_norm_t, weight_t * factor, mixture_tV, out_tV)
    out_tV.scatter_(-1, targets.ids, entries_tK.to(out_tV.dtype))
    return out_tV if dense_tV is None else out_tV.to(dtype) - dense_tV


def _listed_gradient(chunk: Chunk, mass_t: Tensor, taught: Taught | None) -> Tensor:
    """The gradient at the tokens of the sparse part, (t, K); equal ids get the sum of their weights."""
    targets, dtype = chunk.targets, chunk.log_norm.dtype
    weights_tK = targets.weights.to(dtype)
    if targets.ids.shape[1] > 1:
        sums_tV = weights_tK.new_zeros(chunk.raw.shape).scatter_add_(-1, targets.ids, weights_tK)
        weights_tK = sums_tV.gather(-1, targets.ids)
    z_tK = chunk.at(targets.ids)
    grad_tK = mass_t[:, None] * (z_tK - chunk.log_norm[:, None]).exp() - weights_tK
    if targets.uniform_weight is not None:
        grad_tK = grad_tK - (targets.uniform_weight.to(dtype) / chunk.raw.shape[1])[:, None]
    if taught is not None:
        grad_tK = grad_tK - taught.listed
    return grad_tK * slope(z_tK, chunk.finish)
