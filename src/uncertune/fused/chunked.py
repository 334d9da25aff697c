"""The chunked torch implementation: closed-form gradients, no (T, V) tensor, CPU and GPU.

Shape legend: ``T`` response tokens, ``t`` the tokens of one chunk, ``V`` vocabulary, ``D`` hidden size.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from uncertune.fused.projection import Projection, TokenStats
from uncertune.objectives import Targets


def token_stats(hidden_TD: Tensor, projection: Projection, labels_T: Tensor) -> TokenStats:
    """Loss, entropy and correctness of every token, one chunk at a time."""
    parts = [
        chunk_stats(projection.logits(hidden_TD[rows]), labels_T[rows]) for rows in projection.chunks(len(labels_T))
    ]
    if not parts:
        nothing = hidden_TD.new_zeros(0, dtype=projection.exact)
        return TokenStats(nothing, nothing, nothing.bool())
    return TokenStats(*(torch.cat(column) for column in zip(*parts, strict=True)))


def chunk_stats(z_tV: Tensor, labels_t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(loss, entropy, correct) of a chunk of logits, which is left as it was."""
    log_norm_t = z_tV.logsumexp(-1)
    label_z_t = z_tV.gather(-1, labels_t[:, None])[:, 0]
    p_tV = (z_tV - log_norm_t[:, None]).exp_()
    entropy_t = log_norm_t - torch.linalg.vecdot(p_tV, z_tV)
    return log_norm_t - label_z_t, entropy_t.clamp_(min=0), z_tV.argmax(-1) == labels_t


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


def chunk_loss(
    z_tV: Tensor, targets: Targets, teacher: Projection | None, *, with_gradient: bool
) -> tuple[Tensor, Tensor | None]:
    """The loss (t,) of a chunk of logits and its gradient in them, ``(Σ_x w) · softmax(z) − w``, (t, V)."""
    dtype = z_tV.dtype
    log_norm_t = z_tV.logsumexp(-1)
    weights = targets.weights.to(dtype)
    mass_t = weights.sum(-1)
    loss_t = mass_t * log_norm_t - (weights * z_tV.gather(-1, targets.ids)).sum(-1)
    if targets.dense is not None:
        dense_tV = targets.dense.to(dtype)
        dense_mass_t = dense_tV.sum(-1)
        loss_t += dense_mass_t * log_norm_t - torch.linalg.vecdot(dense_tV, z_tV)
        mass_t = mass_t + dense_mass_t
    if targets.teacher_weight is not None:
        mass_t = mass_t + targets.teacher_weight.to(dtype)
    grad_tV = None
    if with_gradient:
        grad_tV = (z_tV - log_norm_t[:, None]).exp_().mul_(mass_t[:, None])
        grad_tV.scatter_add_(-1, targets.ids, -weights)
        if targets.dense is not None:
            grad_tV.sub_(dense_tV)
    if teacher is not None:
        _add_teacher(loss_t, grad_tV, z_tV, log_norm_t, targets, teacher)
    if targets.tail_weight is not None:
        _add_tail(loss_t, grad_tV, z_tV, log_norm_t, targets)
    return loss_t, grad_tV


def _add_teacher(
    loss_t: Tensor, grad_tV: Tensor | None, z_tV: Tensor, log_norm_t: Tensor, targets: Targets, teacher: Projection
) -> None:
    """Distillation from the factored teacher, on the rows where it has weight; ``grad_tV`` holds its mass already."""
    assert targets.teacher_weight is not None
    assert targets.teacher_hidden is not None
    taught = (targets.teacher_weight != 0).nonzero()[:, 0]
    if taught.numel() == 0:
        return
    weight_s = targets.teacher_weight[taught].to(z_tV.dtype)
    q_sV = teacher.logits(targets.teacher_hidden[taught]).to(z_tV.dtype)
    q_sV.sub_(q_sV.logsumexp(-1, keepdim=True)).exp_()
    whole = taught.numel() == z_tV.shape[0]
    expected_s = torch.linalg.vecdot(q_sV, z_tV if whole else z_tV[taught])
    loss_t[taught] += weight_s * (log_norm_t[taught] - expected_s)
    if grad_tV is not None:
        grad_tV.index_add_(0, taught, q_sV.mul_(-weight_s[:, None]))


def _add_tail(loss_t: Tensor, grad_tV: Tensor | None, z_tV: Tensor, log_norm_t: Tensor, targets: Targets) -> None:
    """The tail bucket: ``tail · (LSE(z) − log Σ_{x ∉ ids} exp z[x])``; a bucket of no tokens has no term."""
    assert targets.tail_weight is not None
    outside_tV = torch.ones_like(z_tV, dtype=torch.bool).scatter_(-1, targets.ids, False)
    tail_t = targets.tail_weight.to(z_tV.dtype) * outside_tV.any(-1)
    kept_tV = z_tV.masked_fill(~outside_tV & (tail_t != 0)[:, None], float("-inf"))
    rest_t = kept_tV.logsumexp(-1)
    loss_t += tail_t * (log_norm_t - rest_t)
    if grad_tV is not None:
        grad_tV.add_((z_tV - log_norm_t[:, None]).exp_().mul_(tail_t[:, None]))
        grad_tV.sub_(kept_tV.sub_(rest_t[:, None]).exp_().mul_(tail_t[:, None]))


class WeightedNLL(torch.autograd.Function):
    """Loss per token (T,) with the gradient in the hidden states computed in the same sweep.

    ``stats_labels`` (T,) asks for the statistics of all tokens from the same logits; without it, rows of no weight are
    never projected. The gradient in a trained head needs the incoming gradients, so it takes a second sweep.
    ``factor`` is the incoming gradient that is expected: it decides how half-precision gradients round, nothing else.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden_TD: Tensor,
        head: Tensor,
        bias: Tensor | None,
        targets: Targets,
        student: Projection,
        teacher: Projection | None,
        stats_labels: Tensor | None,
        train_hidden: bool,
        factor: float,
    ) -> tuple[Tensor, ...]:
        weighted = targets.row_mask()
        rows_T = weighted.nonzero()[:, 0] if stats_labels is None else None
        active = targets if rows_T is None else targets.rows(rows_T)
        hidden = hidden_TD if rows_T is None else hidden_TD[rows_T]
        loss = hidden.new_zeros(active.size, dtype=student.exact)
        grad_hidden = torch.zeros_like(hidden, dtype=student.exact) if train_hidden else None
        stats: list[tuple[Tensor, Tensor, Tensor]] = []
        for rows in student.chunks(active.size):
            z_tV = student.logits(hidden[rows])
            if stats_labels is not None:
                stats.append(chunk_stats(z_tV, stats_labels[rows]))
            loss[rows], grad_tV = chunk_loss(z_tV, active.rows(rows), teacher, with_gradient=train_hidden)
            if grad_hidden is not None and grad_tV is not None:
                grad_hidden[rows] = student.to_hidden(student.pull_back(grad_tV.mul_(factor), z_tV))
            del z_tV, grad_tV
        ctx.student, ctx.teacher, ctx.targets, ctx.rows_T = student, teacher, active, rows_T
        ctx.length, ctx.dtype, ctx.factor = hidden_TD.shape[0], hidden_TD.dtype, factor
        ctx.train_head = any(ctx.needs_input_grad[1:3])
        ctx.save_for_backward(hidden if ctx.train_head else None, grad_hidden, head, bias)
        loss_T = loss if rows_T is None else _spread(loss, rows_T, hidden_TD.shape[0])
        if stats_labels is None:
            return (loss_T,)
        columns = (
            tuple(torch.cat(column) for column in zip(*stats, strict=True)) if stats else (loss, loss, loss.bool())
        )
        columns = tuple(column.clone() if column is loss else column for column in columns)
        ctx.mark_non_differentiable(*columns)
        return (loss_T, *columns)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        hidden, grad_hidden, head, bias = ctx.saved_tensors
        grad_T = grads[0] if ctx.rows_T is None else grads[0][ctx.rows_T]
        out_hidden = None
        if grad_hidden is not None:
            out_hidden = (grad_hidden * (grad_T / ctx.factor)[:, None]).to(ctx.dtype)
            if ctx.rows_T is not None:
                out_hidden = _spread(out_hidden, ctx.rows_T, ctx.length)
        out_head, out_bias = (None, None)
        if ctx.train_head:
            out_head, out_bias = _head_gradients(ctx, hidden, head, bias, grad_T)
        return out_hidden, out_head, out_bias, None, None, None, None, None, None


def _head_gradients(
    ctx: Any, hidden: Tensor, head: Tensor, bias: Tensor | None, grad_T: Tensor
) -> tuple[Tensor | None, Tensor | None]:
    """The gradients in a trained head and bias, accumulated in float32 over the chunks of a second sweep."""
    student: Projection = ctx.student
    out_head = torch.zeros_like(head, dtype=student.exact) if head.requires_grad else None
    out_bias = torch.zeros_like(bias, dtype=student.exact) if bias is not None and bias.requires_grad else None
    for rows in student.chunks(ctx.targets.size):
        z_tV = student.logits(hidden[rows])
        _, grad_tV = chunk_loss(z_tV, ctx.targets.rows(rows), ctx.teacher, with_gradient=True)
        assert grad_tV is not None
        grad_tV = student.pull_back(grad_tV.mul_(grad_T[rows].to(student.exact)[:, None]), z_tV)
        if out_head is not None:
            out_head += student.to_head(grad_tV, hidden[rows])
        if out_bias is not None:
            out_bias += grad_tV.sum(0)
    return (
        None if out_head is None else out_head.to(head.dtype),
        None if out_bias is None or bias is None else out_bias.to(bias.dtype),
    )


def _spread(values: Tensor, rows_T: Tensor, size: int) -> Tensor:
    """``values`` of some rows among zeros for the others."""
    return values.new_zeros((size, *values.shape[1:])).index_copy_(0, rows_T, values)
