"""A check that dropout at each place has an effect: some architectures have a rate that no forward uses."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from uncertune.errors import UserError
from uncertune.models import attached_head, causal_lm
from uncertune.objectives import Head
from uncertune.uncertainty.dropout import choose_sites, evaluating, mc_dropout

_RATE = 0.9  # of a few tokens of a small model, some activation is then dropped almost surely
_TOKENS = 16
_SLACK = 1e-3  # of the largest hidden state: above the noise of sums in another order, far below the effect


def verify_dropout(model: nn.Module, input_ids: Tensor, places: str | Iterable[str] | None = None) -> None:
    """Check on the first tokens of ``input_ids`` (L,) that dropout at each place changes the last hidden states.

    Runs one short forward per place, and one without dropout. LoRA is not checked, since an untrained adapter has no
    effect at all. Raises UserError for a place without effect, and names the places with one.
    """
    sites = choose_sites(model, places)
    named = list(dict.fromkeys(site.place for site in sites)) if places is None else places
    wanted = [named] if isinstance(named, str) else list(named)
    wanted = [place for place in wanted if any(site.place != "lora" for site in choose_sites(model, place))]
    ids = input_ids[:_TOKENS][None]
    with torch.no_grad(), attached_head(model):
        with evaluating(model):
            plain = _hidden(model, ids)
        works = {}
        for place in wanted:
            with mc_dropout(model, _RATE, 0, place):
                moved = (_hidden(model, ids) - plain).abs().max().item()
            works[place] = not moved <= _SLACK * plain.abs().max().item()
    if idle := [place for place in wanted if not works[place]]:
        lm = causal_lm(model)
        kind = getattr(getattr(lm, "config", None), "_attn_implementation", None)
        rest = [place for place in wanted if works[place]]
        fix = f"give places={rest}" if rest else "train a LoRA adapter and give places=['lora']"
        raise UserError(
            f"places: dropout at {idle[0]!r} changes nothing in {type(lm).__name__} with attn_implementation "
            f"{kind!r}: load it with another one, or {fix}"
        )


def _hidden(model: nn.Module, ids: Tensor) -> Tensor:
    taken: list[Tensor] = []

    def take(hidden: Tensor, _head: Head, _aux_loss: Tensor | None) -> dict[str, Tensor]:
        taken.append(hidden.float())
        return {}

    everything = torch.ones_like(ids[:, 1:], dtype=torch.bool)
    model(input_ids=ids, attention_mask=torch.ones_like(ids), head_fn=take, response_mask=everything)
    return taken[0]
