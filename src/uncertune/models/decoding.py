"""Decoding of a batch of prompts; a row that has ended leaves the batch.

``model.generate`` keeps every row until the last one has ended, and most of its time may go into rows of padding.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

SEGMENT = 32
"""Tokens after which rows that have ended are taken out."""

GREEDY: Mapping[str, Any] = {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}

_COUNTED_FROM_THE_CALL = (
    "begin_suppress_tokens",
    "exponential_decay_length_penalty",
    "forced_eos_token_id",
    "min_new_tokens",
)
"""Settings of a generation config that count tokens from the call of ``generate``, which then must be one call."""


@torch.no_grad()
def decode(
    model: Any,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    ends: Collection[int],
    pad: int,
    sampling: Mapping[str, Any] = GREEDY,
) -> list[list[int]]:
    """The new token ids of each prompt, up to and with the first one in ``ends``, at most ``max_new_tokens``.

    Args:
        prompts: token ids, padded on the left here; a batch as large as it is given.
        ends: ids of end tokens, at least one.
        pad: id of the padding token.
        sampling: arguments of ``model.generate``; greedy by default. Samples depend on the global random state and
            on the batch.
    """
    device = next(model.parameters()).device
    length = max(map(len, prompts))
    ids = torch.tensor([[pad] * (length - len(one)) + list(one) for one in prompts], device=device)
    mask = torch.tensor([[0] * (length - len(one)) + [1] * len(one) for one in prompts], device=device)
    said: list[list[int]] = [[] for _ in prompts]
    rows = list(range(len(prompts)))
    stops = torch.tensor(sorted(ends), device=device)
    segment, cache = SEGMENT if _in_segments(model) else max_new_tokens, None
    for start in range(0, max_new_tokens, segment):
        out = model.generate(
            input_ids=ids,
            attention_mask=mask,
            past_key_values=cache,
            max_new_tokens=min(segment, max_new_tokens - start),
            pad_token_id=pad,
            eos_token_id=sorted(ends),
            return_dict_in_generate=True,
            **sampling,
        )
        new = out.sequences[:, ids.shape[1] :]
        ended = torch.isin(new, stops)
        count = torch.where(ended.any(1), ended.int().argmax(1) + 1, new.shape[1])
        for row, found, kept in zip(rows, new.tolist(), count.tolist(), strict=True):
            said[row] += found[:kept]
        going = (~ended.any(1)).nonzero()[:, 0]
        if not len(going) or start + segment >= max_new_tokens:
            break
        rows = [rows[place] for place in going.tolist()]
        ids = out.sequences[going]
        mask = torch.cat([mask[going], mask.new_ones(len(going), new.shape[1])], dim=1)
        cache = _of_rows(out.past_key_values, going, of=len(new))
    return said


def end_tokens(model: Any, tokenizer: Any) -> set[int]:
    """The tokens that end an answer: the model's and the tokenizer's."""
    own = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    found = {tokenizer.eos_token_id, *(own if isinstance(own, list) else [own])}
    return {token for token in found if token is not None}


def _in_segments(model: Any) -> bool:
    config = getattr(model, "generation_config", None)
    counted = any(getattr(config, name, None) for name in _COUNTED_FROM_THE_CALL)
    return not counted and (getattr(config, "num_beams", None) or 1) == 1


def _of_rows(cache: Any, rows: Tensor, of: int) -> Any:
    """The cache of some rows ``of`` so many; None, and the next segment starts with the whole sequence, for one that
    cannot be cut."""
    layers = getattr(cache, "layers", None)
    if not layers or not all(hasattr(layer, "batch_select_indices") for layer in layers):
        return None
    if len(rows) < of:
        cache.batch_select_indices(rows)
    return cache
