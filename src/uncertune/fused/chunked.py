"""Sweeps over the tokens: closed-form gradients, no (T, V) tensor beyond what ``LOGITS_BYTES`` allows, CPU and GPU.

Shape legend: ``T`` response tokens, ``t`` the tokens of one chunk, ``V`` vocabulary, ``D`` hidden size, ``K`` entries
kept of ``V``.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from uncertune.fused.elementwise import Teacher, finished
from uncertune.fused.kernels import kernels
from uncertune.fused.projection import Projection, TokenStats
from uncertune.objectives import Targets
from uncertune.objectives.head import Finish, slope

FAR = 8.0
"""Nats between the label and the most likely token from which rounding relative to the label costs too much: up to that
distance bfloat16 errs by one percent of a probability or less (root mean square). Of the tokens of real text two in a
hundred are farther; they are projected again."""


@dataclass(frozen=True)
class Scored:
    """What scoring all tokens leaves for the weighted sweep over the same hidden states and head.

    ``stats`` is what was asked for. The rest spares work: the ``offset`` and log-sum-exp of every token (T,), and
    ``raw``, the products of the first chunks of tokens, as many as the memory allowed.
    """

    stats: TokenStats
    labels: Tensor
    projection: Projection
    offset: Tensor | None
    log_norm: Tensor
    raw: tuple[Tensor, ...]

    @property
    def kept(self) -> int:
        """How many tokens' products are there, from the first on."""
        return sum(raw_tV.shape[0] for raw_tV in self.raw)

    def take(self, rows_t: Tensor, out_tV: Tensor) -> None:
        """The kept products of some tokens, in ascending order, into ``out``."""
        sizes = torch.tensor([0, *(raw_tV.shape[0] for raw_tV in self.raw)]).cumsum(0)
        cuts = torch.searchsorted(rows_t, sizes.to(rows_t.device)).tolist()
        for raw_tV, first, start, stop in zip(self.raw, sizes.tolist(), cuts, cuts[1:], strict=False):
            if start < stop:
                torch.index_select(raw_tV, 0, rows_t[start:stop] - first, out=out_tV[start:stop])


def score(hidden_TD: Tensor, projection: Projection, labels_T: Tensor, *, keep: bool) -> Scored:
    """Loss, entropy and correctness of every token, one chunk at a time; with ``keep`` the products stay."""
    size = min(projection.chunk_rows(), max(1, len(labels_T)))
    work = _Work(projection, size)
    log_norm = hidden_TD.new_empty(len(labels_T), dtype=projection.exact)
    stats = TokenStats(torch.empty_like(log_norm), torch.empty_like(log_norm), torch.empty_like(log_norm).bool())
    offsets, kept = [], []
    for rows in projection.chunks(len(labels_T)):
        labels_t = labels_T[rows]
        keeps = keep and rows.stop <= projection.kept_rows()
        measured = _measure(projection, hidden_TD[rows], labels_t, None if keeps else work.raw(len(labels_t)))
        measured.write(stats, rows, labels_t, projection.finish)
        log_norm[rows] = measured.log_norm
        if measured.offset is not None:
            offsets.append(measured.offset)
        if keeps:
            kept.append(measured.raw)
    return Scored(stats, labels_T, projection, torch.cat(offsets) if offsets else None, log_norm, tuple(kept))


class _Measured(NamedTuple):
    """The products of some tokens and what ``statistics`` says of them."""

    raw: Tensor
    offset: Tensor | None
    log_norm: Tensor
    entropy: Tensor
    top: Tensor

    def write(self, stats: TokenStats, rows: Tensor | slice, labels_t: Tensor, finish: Finish) -> None:
        stats.loss[rows] = self.log_norm - _at(self.raw, self.offset, finish, labels_t[:, None])[:, 0]
        stats.entropy[rows] = self.entropy
        stats.correct[rows] = self.top == labels_t


def _measure(projection: Projection, hidden_tD: Tensor, labels_t: Tensor | None, out_tV: Tensor | None) -> _Measured:
    """Products, relative to the label where they are rounded; to the most likely token where that is far from it."""
    offset_t = None if labels_t is None else projection.offset(hidden_tD, labels_t)
    raw_tV = projection.products(hidden_tD, offset_t, out_tV)
    log_norm_t, entropy_t, top_t = kernels(raw_tV).statistics(raw_tV, offset_t, projection.finish)
    if offset_t is not None and labels_t is not None:
        z_t2 = _at(raw_tV, offset_t, projection.finish, torch.stack([labels_t, top_t], 1))
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
    return _Measured(raw_tV, offset_t, log_norm_t, entropy_t, top_t)


def top_k(hidden_TD: Tensor, projection: Projection, k: int) -> tuple[Tensor, Tensor]:
    """The k most probable tokens (T, k) and their probabilities over the whole vocabulary."""
    ids, probs = [], []
    for rows in projection.chunks(hidden_TD.shape[0]):
        z_tV = projection.logits(hidden_TD[rows])
        top = z_tV.topk(k, dim=-1)
        ids.append(top.indices)
        probs.append((top.values - z_tV.logsumexp(-1, keepdim=True)).exp())
    if not ids:
        return hidden_TD.new_zeros(0, k, dtype=torch.long), hidden_TD.new_zeros(0, k, dtype=projection.exact)
    return torch.cat(ids), torch.cat(probs)


@dataclass(frozen=True)
class Job:
    """One weighted sweep: what is asked of T tokens, through which head, and what is known already.

    ``labels`` (T,) are the tokens whose logits ``products`` are taken relative to. ``teacher`` is None without a
    factored teacher; with ``shared`` it goes through the student's own head. ``with_stats`` asks for the statistics of
    all tokens. ``factor`` is what the losses are expected to be multiplied by: the gradient of a trained head is
    computed for it, and gradients are rounded after it.
    """

    targets: Targets
    student: Projection
    labels: Tensor | None
    teacher: Projection | None = None
    shared: bool = False
    scored: Scored | None = None
    with_stats: bool = False
    factor: float = 1.0


@dataclass
class Gradients:
    """What a sweep computes beside the loss: (T, D), (V, D) and (V,), started at zero; None where not wanted."""

    hidden: Tensor | None = None
    head: Tensor | None = None
    bias: Tensor | None = None

    def any(self) -> bool:
        return not (self.hidden is None and self.head is None and self.bias is None)

    def add(self, student: Projection, rows_t: Tensor, hidden_tD: Tensor, grad_tV: Tensor) -> None:
        """Take in the gradient in the products of some tokens."""
        if self.hidden is not None:
            self.hidden[rows_t] = student.to_hidden(grad_tV).to(self.hidden.dtype)
        if self.head is not None:
            student.add_to_head(self.head, grad_tV, hidden_tD)
        if self.bias is not None:
            self.bias += grad_tV.sum(0, dtype=self.bias.dtype)


class _Work:
    """Chunk-sized buffers, made once and used for every chunk of a sweep."""

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


class _Group(NamedTuple):
    """Tokens that are treated alike."""

    rows: Tensor
    weighted: bool
    taught: bool
    kept: bool


def _groups(job: Job, size: int) -> Iterator[_Group]:
    """All tokens that a sweep has to do with, in groups of at most ``size``."""
    code_T = job.targets.row_mask().long()
    if job.teacher is not None and job.targets.teacher_weight is not None:
        code_T += 2 * (job.targets.teacher_weight != 0)
    if job.scored is not None:
        code_T[: job.scored.kept] += 4
    for code in range(0 if job.with_stats else 1, 8):
        if code & 1 or job.with_stats:
            for rows_t in (code_T == code).nonzero()[:, 0].split(size):
                if rows_t.numel():
                    yield _Group(rows_t, bool(code & 1), bool(code & 2), bool(code & 4))


def sweep(
    hidden_TD: Tensor, job: Job, upstream: Tensor | float, gradients: Gradients
) -> tuple[Tensor, TokenStats | None]:
    """The loss of every token (T,), and into ``gradients`` those of ``Σ_t upstream_t · loss_t``."""
    student = job.student
    size = min(student.chunk_rows(train_head=gradients.head is not None), max(1, hidden_TD.shape[0]))
    work = _Work(student, size)
    loss_T = hidden_TD.new_zeros(job.targets.size, dtype=student.exact)
    stats = None
    if job.with_stats:
        stats = TokenStats(torch.empty_like(loss_T), torch.empty_like(loss_T), torch.empty_like(loss_T).bool())
    for group in _groups(job, size):
        chunk = _project(hidden_TD, job, group, work, stats)
        if not group.weighted:
            continue
        loss_T[group.rows], terms = _loss(chunk)
        if gradients.any():
            factor = upstream[group.rows].to(student.exact) if isinstance(upstream, Tensor) else upstream
            gradients.add(student, group.rows, chunk.hidden, _gradient(chunk, terms, factor, work))
    return loss_T, stats


@dataclass(frozen=True)
class _Chunk:
    """Some tokens, what is asked of them, and their products: the student's, and a teacher's where it has weight."""

    targets: Targets
    hidden: Tensor
    raw: Tensor
    offset: Tensor | None
    finish: Finish
    log_norm: Tensor
    teacher: Teacher | None

    def at(self, ids_tK: Tensor) -> Tensor:
        """The logits of some tokens of each row, (t, K)."""
        return _at(self.raw, self.offset, self.finish, ids_tK)


def _at(raw_tV: Tensor, offset_t: Tensor | None, finish: Finish, ids_tK: Tensor) -> Tensor:
    bias = None if finish.bias is None else finish.bias[ids_tK]
    return finished(raw_tV.gather(-1, ids_tK), offset_t, finish._replace(bias=bias))


def _project(hidden_TD: Tensor, job: Job, group: _Group, work: _Work, stats: TokenStats | None) -> _Chunk:
    """The products of a group, as far as they are not known, and its statistics where they are asked for."""
    rows_t, student, scored = group.rows, job.student, job.scored
    hidden_tD = hidden_TD[rows_t]
    targets = job.targets.rows(rows_t)
    raw_tV = work.raw(len(rows_t))
    if scored is None:
        labels_t = None if job.labels is None else job.labels[rows_t]
        measured = _measure(student, hidden_tD, labels_t, raw_tV)
        if stats is not None and labels_t is not None:
            measured.write(stats, rows_t, labels_t, student.finish)
        offset_t, log_norm_t = measured.offset, measured.log_norm
    else:
        offset_t = None if scored.offset is None else scored.offset[rows_t]
        log_norm_t = scored.log_norm[rows_t]
        if group.kept:
            scored.take(rows_t, raw_tV)
        else:
            student.products(hidden_tD, offset_t, raw_tV)
    teacher = _teach(hidden_tD, targets, job, work) if group.taught else None
    return _Chunk(targets, hidden_tD, raw_tV, offset_t, student.finish, log_norm_t, teacher)


def _teach(hidden_tD: Tensor, targets: Targets, job: Job, work: _Work) -> Teacher:
    """The teacher's products; through a shared head those of the difference of the hidden states, (h − h_ref) headᵀ."""
    assert job.teacher is not None
    assert targets.teacher_hidden is not None
    teacher_tD = targets.teacher_hidden
    if job.shared:
        exact, compute = job.student.exact, job.student.compute
        teacher_tD = hidden_tD.to(compute).to(exact) - teacher_tD.to(compute).to(exact)
    out_tV = work.get("teacher", targets.size, job.teacher.stored)
    return Teacher(job.teacher.products(teacher_tD, None, out_tV), job.teacher.finish, job.shared)


class _Terms(NamedTuple):
    """What the loss of a chunk has found that its gradient needs."""

    mass: Tensor
    """Σ_x w(x), the tail's included, (t,)."""
    teacher_norm: Tensor | None
    tail: Tensor | None
    rest: Tensor | None
    """Log-sum-exp of the tail bucket."""


def _loss(chunk: _Chunk) -> tuple[Tensor, _Terms]:
    """``Σ_x w(x) · (LSE(z) − z[x])`` and the tail bucket's term, (t,)."""
    targets, log_norm_t = chunk.targets, chunk.log_norm
    dtype = log_norm_t.dtype
    weights_tK = targets.weights.to(dtype)
    mass_t = weights_tK.sum(-1)
    loss_t = (weights_tK * (log_norm_t[:, None] - chunk.at(targets.ids))).sum(-1)
    if targets.dense is not None:
        dense_tV = targets.dense.to(dtype)
        mass_t = mass_t + dense_tV.sum(-1)
        loss_t += (dense_tV * (log_norm_t[:, None] - finished(chunk.raw, chunk.offset, chunk.finish))).sum(-1)
    teacher_norm_t = None
    if chunk.teacher is not None:
        assert targets.teacher_weight is not None
        taught_t = targets.teacher_weight.to(dtype)
        teacher_norm_t, expected_t = kernels(chunk.raw).teacher_statistics(
            chunk.raw, chunk.offset, chunk.finish, chunk.teacher
        )
        mass_t = mass_t + taught_t
        loss_t += taught_t * (log_norm_t - expected_t)
    tail_t, rest_t = None, None
    if targets.tail_weight is not None:
        others_tV = finished(chunk.raw, chunk.offset, chunk.finish).scatter(-1, targets.ids, float("-inf"))
        rest_t = others_tV.logsumexp(-1)
        tail_t = torch.where(rest_t == float("-inf"), 0, targets.tail_weight.to(dtype))  # an empty bucket has no term
        rest_t = torch.where(tail_t == 0, log_norm_t, rest_t)
        mass_t = mass_t + tail_t
        loss_t += tail_t * (log_norm_t - rest_t)
    return loss_t, _Terms(mass_t, teacher_norm_t, tail_t, rest_t)


def _gradient(chunk: _Chunk, terms: _Terms, factor: Tensor | float, work: _Work) -> Tensor:
    """``((Σ_x w) · softmax(z) − w) · dz/d(raw) · factor``, (t, V), over the products where it can.

    Tokens with sparse weights are computed apart, in full precision, and written over what the pass over all put there.
    """
    targets, log_norm_t, head = chunk.targets, chunk.log_norm, work.projection.head
    dtype, run = log_norm_t.dtype, kernels(chunk.raw)
    column = factor[:, None] if isinstance(factor, Tensor) else factor
    entries_tK = _listed_gradient(chunk, terms) * column
    dense_tV = None
    if targets.dense is not None:
        z_tV = finished(chunk.raw, chunk.offset, chunk.finish)
        dense_tV = targets.dense.to(dtype) * slope(z_tV, chunk.finish) * column
    out_tV = chunk.raw
    if chunk.raw.dtype != head.dtype:
        out_tV = work.get("gradient", targets.size, head.dtype)
    norm_t, mass_t = log_norm_t, terms.mass
    if terms.tail is not None and terms.rest is not None:  # M · p − tail · p_rest, as one multiple of p_rest
        norm_t, mass_t = terms.rest, terms.mass * (terms.rest - log_norm_t).exp() - terms.tail
    student = (chunk.raw, chunk.offset, chunk.finish, norm_t, mass_t * factor)
    if chunk.teacher is None:
        run.gradient(*student, out_tV)
    else:
        assert targets.teacher_weight is not None
        run.taught_gradient(
            *student, chunk.teacher, terms.teacher_norm, targets.teacher_weight.to(dtype) * factor, out_tV
        )
    out_tV.scatter_(-1, targets.ids, entries_tK.to(out_tV.dtype))
    return out_tV if dense_tV is None else out_tV.to(dtype) - dense_tV


def _listed_gradient(chunk: _Chunk, terms: _Terms) -> Tensor:
    """The gradient at the tokens of the sparse part, (t, K); each of some equal ids gets the sum of their weights."""
    targets, dtype = chunk.targets, chunk.log_norm.dtype
    weights_tK = targets.weights.to(dtype)
    if targets.ids.shape[1] > 1:
        sums_tV = weights_tK.new_zeros(chunk.raw.shape).scatter_add_(-1, targets.ids, weights_tK)
        weights_tK = sums_tV.gather(-1, targets.ids)
    z_tK = chunk.at(targets.ids)
    grad_tK = terms.mass[:, None] * (z_tK - chunk.log_norm[:, None]).exp() - weights_tK
    if chunk.teacher is not None:
        assert targets.teacher_weight is not None
        assert terms.teacher_norm is not None
        teacher, offset_t = chunk.teacher, None
        raw_tK = teacher.raw.gather(-1, targets.ids)
        if teacher.delta:
            raw_tK, offset_t = chunk.raw.gather(-1, targets.ids).to(dtype) - raw_tK.to(dtype), chunk.offset
        bias = None if teacher.finish.bias is None else teacher.finish.bias[targets.ids]
        q_tK = (finished(raw_tK, offset_t, teacher.finish._replace(bias=bias)) - terms.teacher_norm[:, None]).exp()
        grad_tK = grad_tK - targets.teacher_weight.to(dtype)[:, None] * q_tK
    return grad_tK * slope(z_tK, chunk.finish)


class WeightedNLL(torch.autograd.Function):
    """Loss per token (T,), and the statistics that the job asks for; every gradient is computed in the same sweep.

    Gradients in the hidden states are right for any incoming gradient. Those in a trained head are computed for one
    that is the same for all tokens, as that of a sum or mean is; another one takes a second sweep.
    """

    @staticmethod
    def forward(
        ctx: Any, hidden_TD: Tensor, head: Tensor, bias: Tensor | None, job: Job, train_hidden: bool
    ) -> tuple[Tensor, ...]:
        train_head, train_bias = ctx.needs_input_grad[1:3]
        exact = job.student.exact
        gradients = Gradients(
            torch.zeros_like(hidden_TD) if train_hidden else None,
            torch.zeros_like(head, dtype=exact) if train_head else None,
            torch.zeros_like(bias, dtype=exact) if train_bias and bias is not None else None,
        )
        loss_T, stats = sweep(hidden_TD, job, job.factor, gradients)
        trains = train_head or train_bias
        ctx.job = replace(job, scored=None, with_stats=False) if trains else None
        ctx.factor, ctx.dtypes = job.factor, (head.dtype, None if bias is None else bias.dtype)
        ctx.save_for_backward(hidden_TD if trains else None, gradients.hidden, gradients.head, gradients.bias)
        if stats is None:
            return (loss_T,)
        ctx.mark_non_differentiable(stats.loss, stats.entropy, stats.correct)
        return loss_T, stats.loss, stats.entropy, stats.correct

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_T: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        hidden_TD, grad_hidden, grad_head, grad_bias = ctx.saved_tensors
        ratio_T = grad_T / ctx.factor
        if grad_hidden is not None:
            grad_hidden = (grad_hidden * ratio_T[:, None]).to(grad_hidden.dtype)
        if ctx.job is not None and grad_T.numel():
            if grad_T.stride() == (0,) or bool((grad_T == grad_T[0]).all()):
                grad_head, grad_bias = (None if g is None else g * ratio_T[0] for g in (grad_head, grad_bias))
            else:
                again = Gradients(None, *(None if g is None else torch.zeros_like(g) for g in (grad_head, grad_bias)))
                sweep(hidden_TD, ctx.job, grad_T, again)
                grad_head, grad_bias = again.head, again.bias
        head_dtype, bias_dtype = ctx.dtypes
        return (
            grad_hidden,
            None if grad_head is None else grad_head.to(head_dtype),
            None if grad_bias is None else grad_bias.to(bias_dtype),
            None,
            None,
        )
