"""Measures of a model and its adapters: token losses, divergence from the base, and generated answers.

Rows have ``input_ids`` and ``labels`` (−100 outside the response). Everything runs in eval mode and without gradient.
Means are over response tokens, in nats.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from uncertune.data.rows import Row
from uncertune.fused import linear_token_stats, linear_weighted_nll
from uncertune.models import active_adapter
from uncertune.models.decoding import decode, end_tokens
from uncertune.objectives import OBJECTIVES
from uncertune.runs.notes import progress
from uncertune.teachers.adapter import evaluating, frozen_rows


def batches(rows: Sequence[Row], size: int, pad: int, device: torch.device) -> Iterator[dict[str, Tensor]]:
    """Padded batches, longest rows together."""
    order = sorted(range(len(rows)), key=lambda i: -len(rows[i].input_ids))
    for start in range(0, len(rows), size):
        chosen = [rows[i] for i in order[start : start + size]]
        length = max(len(row.input_ids) for row in chosen)

        def padded(values: list[list[int]], fill: int, length: int = length) -> Tensor:
            return torch.tensor([one + [fill] * (length - len(one)) for one in values], device=device)

        ids, labels = padded([row.input_ids for row in chosen], pad), padded([row.labels for row in chosen], -100)
        lengths = torch.tensor([[len(row.input_ids)] for row in chosen], device=device)
        yield {
            "input_ids": ids,
            "attention_mask": (torch.arange(length, device=device) < lengths).long(),
            "labels": labels,
        }


def token_loss(model: nn.Module, rows: Sequence[Row], *, pad: int, batch_size: int = 8) -> float:
    """Mean cross-entropy of the response tokens."""
    total, count = 0.0, 0
    for inputs, mask, labels in _answers(model, rows, pad, batch_size):
        taken = frozen_rows(model, inputs, mask)
        loss = linear_token_stats(taken.hidden, taken.head, labels).loss
        total, count = total + float(loss.sum()), count + loss.numel()
    return total / max(count, 1)


@dataclass(frozen=True)
class Drift:
    """How far an adapter has moved from its base.

    ``kl`` is the mean KL(base ‖ base with adapter) in nats, exact over the whole vocabulary; ``kept`` the share of the
    tokens that the base predicts right (its most probable one) that the adapter predicts right too.
    """

    kl: float
    kept: float


def drift_from_base(model: Any, name: str, rows: Sequence[Row], *, pad: int, batch_size: int = 8) -> Drift:
    """The drift of the adapter ``name`` over the response tokens of the rows."""
    total, count, kept, known = 0.0, 0, 0, 0
    for inputs, mask, labels in _answers(model, rows, pad, batch_size):
        with active_adapter(model, None):
            base = frozen_rows(model, inputs, mask)
        with active_adapter(model, name):
            tuned = frozen_rows(model, inputs, mask)
        targets = OBJECTIVES["distill"](labels, teacher=base)
        with torch.no_grad():
            cross = linear_weighted_nll(tuned.hidden, tuned.head, targets)
        before, after = (linear_token_stats(one.hidden, one.head, labels) for one in (base, tuned))
        divergence = (cross - before.entropy).clamp(min=0)  # rounding
        total, count = total + float(divergence.sum()), count + divergence.numel()
        kept, known = kept + int((before.correct & after.correct).sum()), known + int(before.correct.sum())
    return Drift(total / max(count, 1), kept / max(known, 1))


def generate(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[list[dict[str, str]]],
    *,
    max_new_tokens: int,
    batch_size: int = 16,
    label: str = "",
) -> list[str]:
    """Greedy answers to conversations, in their order, batched by length, end-of-turn tokens removed."""
    ids = [tokenizer.apply_chat_template(p, add_generation_prompt=True, return_dict=True)["input_ids"] for p in prompts]
    order = sorted(range(len(ids)), key=lambda i: -len(ids[i]))
    answers = [""] * len(ids)
    ends = end_tokens(model, tokenizer)
    bar = progress(len(ids), f"answers {label}".strip(), "answers", leave=False)
    with evaluating(model):
        for start in range(0, len(ids), batch_size):
            chosen = order[start : start + batch_size]
            batch = [ids[i] for i in chosen]
            found = decode(model, batch, max_new_tokens=max_new_tokens, ends=ends, pad=tokenizer.pad_token_id)
            for i, row in zip(chosen, found, strict=True):
                answers[i] = tokenizer.decode(row, skip_special_tokens=True).strip()
            bar.update(len(chosen))
    bar.close()
    return answers


def _answers(
    model: nn.Module, rows: Sequence[Row], pad: int, size: int
) -> Iterable[tuple[dict[str, Any], Tensor, Tensor]]:
    device = next(model.parameters()).device
    for batch in batches(rows, size, pad, device):
        labels = batch.pop("labels")
        mask = labels[:, 1:] != -100
        yield {**batch, "use_cache": False}, mask, labels[:, 1:][mask]
