"""The study ``language``: every question over one language and model per seed."""

from __future__ import annotations

from dataclasses import replace

from uncertune.studies.language.family import family
from uncertune.studies.language.mechanism import mechanism
from uncertune.studies.language.objectives import objectives
from uncertune.studies.language.path import path
from uncertune.studies.language.proxies import proxies
from uncertune.studies.language.rewards import rewards
from uncertune.studies.language.training import pretrained
from uncertune.studies.language.when import when
from uncertune.studies.language.why import why
from uncertune.studies.language.world import SMALL, Setting
from uncertune.studies.study import Answer, Progress, Study


def run(seeds: int, seed: int, small: bool, data: str | None, progress: Progress) -> Study:
    """Every question over ``seeds`` languages."""
    setting = replace(Setting(seeds, seed), **SMALL) if small else Setting(seeds, seed)
    world = pretrained(setting, progress)
    answer = Answer.joined(
        [
            proxies(world),
            objectives(world, progress),
            rewards(world, progress),
            mechanism(world),
            when(world, small, progress),
            path(world, progress),
            why(world, progress),
            family(world, progress),
        ]
    )
    return Study(
        "language",
        "A language whose uncertainty is known",
        "A small transformer learns six tasks of a language with a known distribution, and is post-trained on a "
        "shifted version of two. So the truth is at hand: how good are BALD, loss and entropy as measures of what a "
        "model does not know, and what does each objective gain and lose, in nats from the truth?",
        {
            "seeds": str(seeds),
            "parameters of a model": str(sum(value[0].numel() for value in world.base.parameters.values())),
            "pretraining": f"{setting.pretraining_steps} steps of {setting.pretraining_batch} texts, all six tasks",
            "post-training": f"{setting.texts} texts, {setting.epochs} epochs, batches of {setting.batch}, AdamW at "
            f"{setting.rate:g}, shift {setting.shift:g}, label noise {setting.noise:g}",
            "seed": str(seed),
        },
        answer,
    )
