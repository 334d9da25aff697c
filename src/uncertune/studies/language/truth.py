"""Exact distances of models from the truth: every measure is (M,), a mean over the words of the test texts."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from uncertune.studies.language.grammar import KINDS, Language, divergence
from uncertune.studies.language.losses import right_word
from uncertune.studies.language.world import World
from uncertune.studies.stacked import Stacked
from uncertune.studies.study import Array, Row

Measures = dict[str, Array]


@torch.no_grad()
def measures(world: World, models: Stacked) -> Measures:
    """``kl``: KL(truth ‖ model) in nats, also by kind of word; ``reward``: the model's probability of the most probable
    word; ``right``: how often that word is the model's most probable too; ``calibration``: |p(top word) − its true
    probability|. Each ``_in`` and ``_out`` of distribution."""
    out = of(world.shifted, world.test_in, models, "in")
    return out | of(world.language, world.test_out, models, "out")


def of(language: Language, texts: Tensor, models: Stacked, where: str) -> Measures:
    """The measures on ``texts`` of ``language``."""
    oracle = language.oracle(texts)
    log_probs = models(texts[..., :-1]).double().log_softmax(-1)
    probs = log_probs.exp()
    kl, best = divergence(oracle, log_probs), right_word(oracle)
    found = {
        "kl": kl,
        "reward": (probs * best).sum(-1),
        "right": best.gather(-1, probs.argmax(-1, keepdim=True))[..., 0],
        "calibration": calibration(oracle, probs),
    }
    found |= {f"kl_{kind}": kl[..., place :: len(KINDS)] for place, kind in enumerate(KINDS)}
    return {f"{name}_{where}": values.flatten(1).mean(1).numpy() for name, values in found.items()}


def rows_of(question: str, found: Mapping[str, Measures], **more: str) -> tuple[Row, ...]:
    """One row for each arm and seed."""
    out: list[Row] = []
    for arm, values in found.items():
        for seed in range(len(next(iter(values.values())))):
            numbers = {key: float(value[seed]) for key, value in values.items()}
            out.append({"question": question, **more, "arm": arm, "seed": seed, **numbers})
    return tuple(out)


def calibration(oracle: Tensor, probs: Tensor) -> Tensor:
    """|p − true probability| of the model's most probable word, (..., V) → (...)."""
    top = probs.argmax(-1, keepdim=True)
    return (probs.gather(-1, top) - oracle.gather(-1, top)).abs()[..., 0]
