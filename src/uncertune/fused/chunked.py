"""Sweeps over the tokens on CPU and GPU: closed-form gradients, and at most ``logits_bytes`` of logits at a time.

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

from uncertune.fused.chunk import Chunk, Source, Work, factored_loss, gradient, label_and_dense_loss, measure
from uncertune.fused.projection import Projection, TokenStats
from uncertune.fused.transfers import to_device
from uncertune.objectives import Targets


@dataclass(frozen=True)
class Scored:
    """Results of scoring all tokens, for the weighted sweep over the same hidden states and head.

    ``stats`` is the result. The rest saves work: the ``offset`` and log-sum-exp of every token (T,), and ``raw``, the
    products of the first chunks of tokens, as many as memory allows.
    """

    stats: TokenStats
    labels: Tensor
    projection: Projection
    offset: Tensor | None
    log_norm: Tensor
    raw: tuple[Tensor, ...]

    @property
    def kept(self) -> int:
        """The number of tokens, from the first, whose products are stored."""
        return sum(raw_tV.shape[0] for raw_tV in self.raw)

    def take(self, rows_t: Tensor, places_t: Tensor, out_tV: Tensor) -> None:
        """Copy the stored products of some tokens, in ascending order, into ``out``; ``places`` are the same tokens on
        the CPU."""
        sizes = torch.tensor([0, *(raw_tV.shape[0] for raw_tV in self.raw)]).cumsum(0)
        cuts = torch.searchsorted(places_t, sizes).tolist()
        for raw_tV, first, start, stop in zip(self.raw, sizes.tolist(), cuts, cuts[1:], strict=False):
            if start < stop:
                torch.index_select(raw_tV, 0, rows_t[start:stop] - first, out=out_tV[start:stop])


def score(hidden_TD: Tensor, projection: Projection, labels_T: Tensor, *, keep: bool) -> Scored:
    """Loss, entropy and correctness of every token, one chunk at a time; ``keep`` stores the products."""
    size = min(projection.chunk_rows(), max(1, len(labels_T)))
    work = Work(projection, size)
    log_norm = hidden_TD.new_empty(len(labels_T), dtype=projection.exact)
    stats = TokenStats(torch.empty_like(log_norm), torch.empty_like(log_norm), torch.empty_like(log_norm).bool())
    offsets, kept = [], []
    for rows in projection.chunks(len(labels_T)):
        labels_t = labels_T[rows]
        keeps = keep and rows.stop <= projection.kept_rows()
        measured = measure(projection, hidden_TD[rows], labels_t, None if keeps else work.raw(len(labels_t)))
        measured.write(stats, rows, labels_t, projection.finish)
        log_norm[rows] = measured.log_norm
        if measured.offset is not None:
            offsets.append(measured.offset)
        if keeps:
            kept.append(measured.raw)
    return Scored(stats, labels_T, projection, torch.cat(offsets) if offsets else None, log_norm, tuple(kept))


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
    """One weighted sweep: the targets of T tokens, the head, and earlier results.

    Products are relative to the logits of the tokens ``labels`` (T,). ``sources`` has one entry for each of
    ``targets.factored``. ``with_stats`` asks for the statistics of all tokens. ``factor`` is the expected factor of the
    losses: the gradient of a trained head is computed for it, and gradients are rounded after it. ``everywhere`` says
    that all tokens have weight, in every factored term, so that the weights need not be looked at first.
    """

    targets: Targets
    student: Projection
    labels: Tensor | None
    sources: tuple[Source, ...] = ()
    scored: Scored | None = None
    with_stats: bool = False
    factor: float = 1.0
    everywhere: bool = False


@dataclass(frozen=True)
class Swept:
    """The results of a sweep over T tokens; only the loss is differentiable.

    ``loss`` (T,); ``stats`` if requested; and for each of n factored terms, on the tokens where it has weight,
    ``cross_entropy`` (n, T) of the student and ``divergence`` (n, T) = KL(term ‖ student), in nats.
    """

    loss: Tensor
    stats: TokenStats | None
    cross_entropy: Tensor
    divergence: Tensor


@dataclass
class Gradients:
    """Gradients that a sweep accumulates: (T, D), (V, D) and (V,), initially zero; None if not needed."""

    hidden: Tensor | None = None
    head: Tensor | None = None
    bias: Tensor | None = None

    def any(self) -> bool:
        return not (self.hidden is None and self.head is None and self.bias is None)

    def add(self, student: Projection, rows_t: Tensor, hidden_tD: Tensor, grad_tV: Tensor) -> None:
        """Add the gradient with respect to the products of some tokens."""
        if self.hidden is not None:
            self.hidden[rows_t] = student.to_hidden(grad_tV).to(self.hidden.dtype)
        if self.head is not None:
            student.add_to_head(self.head, grad_tV, hidden_tD)
        if self.bias is not None:
            self.bias += grad_tV.sum(0, dtype=self.bias.dtype)


class _Group(NamedTuple):
    """Tokens with the same factored terms, ``taught``: their ``rows``, and the same ``places`` on the CPU."""

    rows: Tensor
    places: Tensor
    weighted: bool
    taught: tuple[int, ...]
    kept: bool


def _groups(job: Job, size: int) -> Iterator[_Group]:
    """All tokens of a sweep, in groups of at most ``size``."""
    terms = job.targets.factored
    code_T = _codes(job)
    kept = 2 << len(terms)
    if job.scored is not None:
        code_T[: job.scored.kept] += kept
    for code in code_T.unique().tolist():
        if code & 1 or job.with_stats:
            taught = tuple(number for number in range(len(terms)) if code & (2 << number))
            places = (code_T == code).nonzero()[:, 0]
            rows = to_device(places, job.targets.ids.device)
            for rows_t, places_t in zip(rows.split(size), places.split(size), strict=True):
                yield _Group(rows_t, places_t, bool(code & 1), taught, bool(code & kept))


def _codes(job: Job) -> Tensor:
    """Of each token, (T,) on the CPU: 1 if it has weight, plus 2, 4, … for each factored term with weight."""
    terms = job.targets.factored
    if job.everywhere:
        return torch.full((job.targets.size,), (2 << len(terms)) - 1)
    code_T = job.targets.row_mask().long()
    for number, term in enumerate(terms):
        code_T += (2 << number) * (term.weight != 0)
    return code_T.cpu()


def sweep(hidden_TD: Tensor, job: Job, upstream: Tensor | float, gradients: Gradients) -> Swept:
    """The loss of every token (T,); adds the gradients of ``Σ_t upstream_t · loss_t`` to ``gradients``."""
    student, count = job.student, len(job.targets.factored)
    size = student.chunk_rows(train_head=gradients.head is not None, teacher=count > 0, mixture=count > 1)
    size = min(size, max(1, hidden_TD.shape[0]))
    work = Work(student, size)
    loss_T = hidden_TD.new_zeros(job.targets.size, dtype=student.exact)
    cross_nT, divergence_nT = (loss_T.new_zeros(count, len(loss_T)) for _ in range(2))
    stats = None
    if job.with_stats:
        stats = TokenStats(torch.empty_like(loss_T), torch.empty_like(loss_T), torch.empty_like(loss_T).bool())
    for group in _groups(job, size):
        chunk = _project(hidden_TD, job, group, work, stats)
        if not group.weighted:
            continue
        loss_t, terms = label_and_dense_loss(chunk)
        taught = None
        if group.taught:
            asked = [chunk.targets.factored[i] for i in group.taught]
            taught = factored_loss(chunk, asked, [job.sources[i] for i in group.taught], student, work)
            loss_t += taught.loss
            for i, cross_t, divergence_t in zip(group.taught, taught.cross_entropy, taught.divergence, strict=True):
                cross_nT[i, group.rows], divergence_nT[i, group.rows] = cross_t, divergence_t
        loss_T[group.rows] = loss_t
        if gradients.any():
            factor = upstream[group.rows].to(student.exact) if isinstance(upstream, Tensor) else upstream
            gradients.add(student, group.rows, chunk.hidden, gradient(chunk, terms, taught, factor, work))
    return Swept(loss_T, stats, cross_nT, divergence_nT)


def _project(hidden_TD: Tensor, job: Job, group: _Group, work: Work, stats: TokenStats | None) -> Chunk:
    """The products of a group, unless stored, and its statistics if requested."""
    rows_t, student, scored = group.rows, job.student, job.scored
    hidden_tD = hidden_TD[rows_t]
    targets = job.targets.rows(rows_t)
    raw_tV = work.raw(len(rows_t))
    if scored is None:
        labels_t = None if job.labels is None else job.labels[rows_t]
        measured = measure(student, hidden_tD, labels_t, raw_tV)
        if stats is not None and labels_t is not None:
            measured.write(stats, rows_t, labels_t, student.finish)
        offset_t, log_norm_t, entropy_t = measured.offset, measured.log_norm, measured.entropy
    else:
        offset_t = None if scored.offset is None else scored.offset[rows_t]
        log_norm_t, entropy_t = scored.log_norm[rows_t], scored.stats.entropy[rows_t]
        if group.kept:
            scored.take(rows_t, group.places, raw_tV)
        else:
            student.products(hidden_tD, offset_t, raw_tV)
    chunk = Chunk(targets, hidden_tD, raw_tV, offset_t, student.finish, log_norm_t, entropy_t)
    if targets.token_weighting is None or not group.weighted:
        return chunk
    return replace(chunk, targets=targets.weighted(chunk.view()))


class WeightedNLL(torch.autograd.Function):
    """The fields of ``Swept`` in order, the loss first; the same sweep computes every gradient.

    Gradients with respect to the hidden states are right for any incoming gradient. Those of a trained head assume the
    same incoming gradient for all tokens, as from a sum or mean; otherwise a second sweep computes them.
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
        swept = sweep(hidden_TD, job, job.factor, gradients)
        trains = train_head or train_bias
        ctx.job = replace(job, scored=None, with_stats=False) if trains else None
        ctx.factor, ctx.dtypes = job.factor, (head.dtype, None if bias is None else bias.dtype)
        ctx.save_for_backward(hidden_TD if trains else None, gradients.hidden, gradients.head, gradients.bias)
        beside: tuple[Tensor, ...] = (swept.cross_entropy, swept.divergence)
        if swept.stats is not None:
            beside += (swept.stats.loss, swept.stats.entropy, swept.stats.correct)
        ctx.mark_non_differentiable(*beside)
        return swept.loss, *beside

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
