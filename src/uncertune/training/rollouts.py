"""Answers sampled from a model, and rows for ``policy_gradient``: off-policy training on stored samples.

Answers are drawn at temperature 1 from the whole distribution, so that the stored probabilities are those of the
sampling, and the importance ratio is 1 at the start of training.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from uncertune.fused import linear_token_stats
from uncertune.models import attach_head
from uncertune.models.decoding import decode, end_tokens
from uncertune.objectives import IGNORED
from uncertune.runs.notes import progress
from uncertune.teachers.adapter import evaluating, frozen_rows


@dataclass(frozen=True)
class Answer:
    """One sampled answer: the number of its prompt, token ids of both, its text, and whether it ended by itself."""

    prompt: int
    prompt_ids: list[int]
    ids: list[int]
    text: str
    finished: bool


def sample_answers(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[Sequence[dict[str, str]]],
    *,
    samples: int = 8,
    max_new_tokens: int = 256,
    batch_size: int = 64,
    seed: int = 0,
) -> list[Answer]:
    """``samples`` answers to each conversation, in order; an answer's ids include its end-of-turn token.

    The same seed, model, prompts and ``batch_size`` give the same answers. The global random state is unchanged.
    """
    from transformers import GenerationConfig

    ids = [tokenizer.apply_chat_template(p, add_generation_prompt=True, return_dict=True)["input_ids"] for p in prompts]
    ends = end_tokens(model, tokenizer)
    whole = GenerationConfig(do_sample=True, temperature=1.0, top_k=0, top_p=1.0)  # in place of the model's own
    device = next(model.parameters()).device
    numbers = sorted((n for n in range(len(ids)) for _ in range(samples)), key=lambda n: -len(ids[n]))
    answers: list[Answer] = []
    devices = [device] if device.type == "cuda" else []
    bar = progress(len(numbers), "answers", "answers")
    with bar, evaluating(model), torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        for start in range(0, len(numbers), batch_size):
            chosen = numbers[start : start + batch_size]
            found = decode(
                model,
                [ids[n] for n in chosen],
                max_new_tokens=max_new_tokens,
                ends=ends,
                pad=tokenizer.pad_token_id,
                sampling={"generation_config": whole},
            )
            for n, row in zip(chosen, found, strict=True):
                text = tokenizer.decode(row, skip_special_tokens=True).strip()
                answers.append(Answer(n, ids[n], row, text, row[-1] in ends))
            bar.update(len(chosen))
    return sorted(answers, key=lambda answer: answer.prompt)


@torch.no_grad()
def token_log_probs(
    model: nn.Module, rows: Sequence[dict[str, list[int]]], *, pad: int, batch_size: int = 16
) -> list[list[float | None]]:
    """log p of every label of rows of ``input_ids`` and ``labels``, in nats; None outside response tokens.

    Without dropout. From the model that sampled the rows, this is their column ``old_log_probs``.
    """
    attach_head(model)
    device = next(model.parameters()).device
    found: list[list[float | None]] = [[] for _ in rows]
    for chosen in _by_length(rows, batch_size):
        ids, mask = _padded([rows[n]["input_ids"] for n in chosen], pad, device)
        labels, _ = _padded([rows[n]["labels"] for n in chosen], IGNORED, device)
        place = labels[:, 1:] != IGNORED
        inputs = {"input_ids": ids, "attention_mask": mask, "use_cache": False}
        taken = frozen_rows(model, inputs, place)
        loss_T = linear_token_stats(taken.hidden, taken.head, labels[:, 1:][place]).loss.tolist()
        values: Iterator[float] = iter(loss_T)
        for n in chosen:
            labelled = [False, *(label != IGNORED for label in rows[n]["labels"][1:])]
            found[n] = [-next(values) if one else None for one in labelled]
    return found


def policy_rows(
    model: nn.Module, answers: Sequence[Answer], advantages: Iterable[float], *, pad: int, batch_size: int = 16
) -> list[dict[str, Any]]:
    """Rows for ``policy_gradient``, one per answer: ``input_ids``, ``labels``, ``advantages``, ``old_log_probs``.

    ``model`` is the model that sampled the answers; an answer's advantage applies to each of its tokens.
    """
    rows = [
        {
            "input_ids": answer.prompt_ids + answer.ids,
            "labels": [IGNORED] * len(answer.prompt_ids) + answer.ids,
        }
        for answer in answers
    ]
    log_probs = token_log_probs(model, rows, pad=pad, batch_size=batch_size)
    return [
        {**row, "advantages": float(advantage), "old_log_probs": old}
        for row, advantage, old in zip(rows, advantages, log_probs, strict=True)
    ]


def _by_length(rows: Sequence[dict[str, list[int]]], size: int) -> Iterator[list[int]]:
    order = sorted(range(len(rows)), key=lambda n: -len(rows[n]["input_ids"]))
    for start in range(0, len(order), size):
        yield order[start : start + size]


def _padded(rows: Sequence[list[int]], fill: int, device: Any) -> tuple[Tensor, Tensor]:
    """Rows padded on the right to one length, and their attention mask, (B, L) each."""
    length = max(len(row) for row in rows)
    ids = torch.tensor([row + [fill] * (length - len(row)) for row in rows], device=device)
    return ids, torch.tensor([[1] * len(row) + [0] * (length - len(row)) for row in rows], device=device)
