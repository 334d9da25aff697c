"""``decode``: the tokens of ``model.generate``, and rows that leave the batch when they have ended."""

import pytest
import torch

from helpers.tiny import tiny_model
from uncertune.models import decoding
from uncertune.models.decoding import GREEDY, decode

PROMPTS = [[5, 9, 11, 20], [7], [3, 4, 8], [30, 31], [40], [12, 13]]
PAD = 0


@pytest.fixture(scope="module", params=["llama", "gemma3"])
def model(request):
    return tiny_model(request.param).eval()


def one_by_one(model, ends, tokens):
    """The answers of ``model.generate`` to each prompt by itself."""
    out = []
    for prompt in PROMPTS:
        ids = torch.tensor([prompt])
        mask = torch.ones_like(ids)
        found = model.generate(
            input_ids=ids, attention_mask=mask, max_new_tokens=tokens, eos_token_id=ends, pad_token_id=PAD, **GREEDY
        )
        out.append(found[0, len(prompt) :].tolist())
    return out


def some_ends(model):
    """End tokens with which some answers end early, and some do not: what some prompts are answered with."""
    free = one_by_one(model, [10**6], 24)
    return sorted({free[0][3], free[1][9]})


@pytest.mark.parametrize("segment", [1, 5, 32])
def test_the_tokens_are_those_of_generate_one_prompt_at_a_time(model, segment, monkeypatch):
    monkeypatch.setattr(decoding, "SEGMENT", segment)
    ends = some_ends(model)
    expected = one_by_one(model, ends, 24)
    assert len({len(one) for one in expected}) > 1
    assert decode(model, PROMPTS, max_new_tokens=24, ends=ends, pad=PAD) == expected


@pytest.fixture
def calls(model, monkeypatch):
    """The number of rows and of tokens of every call of ``generate``."""
    found, real = [], model.generate

    def generate(**given):
        found.append((len(given["input_ids"]), given["max_new_tokens"]))
        return real(**given)

    monkeypatch.setattr(model, "generate", generate)
    monkeypatch.setattr(decoding, "SEGMENT", 8)
    return found


def test_rows_that_have_ended_leave_the_batch(model, calls):
    ends = some_ends(model)
    lengths = [len(one) for one in decode(model, PROMPTS, max_new_tokens=24, ends=ends, pad=PAD)]
    going = [sum(length > start for length in lengths) for start in (0, 8, 16)]
    assert calls[-3:] == [(rows, 8) for rows in going]
    assert going[0] > going[-1]


def test_a_cache_that_cannot_be_cut_is_made_anew(model, calls, monkeypatch):
    ends = some_ends(model)
    expected = decode(model, PROMPTS, max_new_tokens=24, ends=ends, pad=PAD)
    monkeypatch.delattr("transformers.cache_utils.DynamicLayer.batch_select_indices")
    assert decode(model, PROMPTS, max_new_tokens=24, ends=ends, pad=PAD) == expected


@pytest.mark.parametrize(("setting", "value"), [("num_beams", 2), ("min_new_tokens", 9)])
def test_settings_that_count_from_the_call_need_one_call(model, calls, monkeypatch, setting, value):
    monkeypatch.setattr(model.generation_config, setting, value)
    decode(model, PROMPTS, max_new_tokens=24, ends=[1], pad=PAD)
    assert calls == [(len(PROMPTS), 24)]
