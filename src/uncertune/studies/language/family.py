"""(h) The family of token-weighted objectives, where MLE stops in time and where it overfits (SPEC §8)."""

from __future__ import annotations

from typing import Any

import numpy as np

from uncertune.statistics.intervals import over_seeds
from uncertune.studies.language.arms import BOTH, DISTILL, MLE, Arm
from uncertune.studies.language.objectives import paired
from uncertune.studies.language.training import trained
from uncertune.studies.language.truth import Measures, measures, rows_of
from uncertune.studies.language.world import World
from uncertune.studies.study import Answer, Drawing, Grid, Plane, Progress, Row, Trail

SETTINGS: dict[str, dict[str, Any]] = {"base": {}, "overfitted": {"epochs": 64, "rate": 3e-3}}
ANCHOR = 0.1
MEMBERS = 4
FAMILY = (
    MLE,
    *(Arm("mle", weighting=name) for name in ("dft", "eaft", "infosft", "focal")),
    Arm("mle", smoothing=0.1),
    Arm("mle", anchor=ANCHOR),
    Arm("mle", weighting="dft", anchor=ANCHOR),
    Arm("masked_mle", fraction=0.75, order="lowest"),
    BOTH,
    Arm("masked_mle_distill", anchor=ANCHOR),
    Arm("masked_mle_distill", members=MEMBERS),
    DISTILL,
    Arm("distill", members=MEMBERS),
)


def family(world: World, progress: Progress) -> Answer:
    """Every arm in both settings, by exact KL from the truth."""
    results: dict[str, dict[str, Measures]] = {}
    total = len(SETTINGS) * len(FAMILY)
    for number, (setting, fields) in enumerate(SETTINGS.items()):
        here = world.changed(**fields)
        results[setting] = {}
        for index, arm in enumerate(FAMILY):
            progress("the family", number * len(FAMILY) + index, total)
            results[setting][arm.name] = measures(here, trained(here, arm))
    progress("the family", total, total)
    title = "Gain over MLE in and out of distribution; the upper right is better on both."
    planes = tuple(_plane(setting, found) for setting, found in results.items())
    rows: list[Row] = []
    for setting, found in results.items():
        rows += rows_of("h", found, setting=setting)
    grids = tuple(_grid(setting, found) for setting, found in results.items())
    return Answer((), grids, (Drawing("family", title, planes),), tuple(rows))


def _grid(setting: str, found: dict[str, Measures]) -> Grid:
    mle = found[MLE.name]
    rows = []
    for name, measured in found.items():
        kl = [over_seeds(measured[f"kl_{where}"]) for where in ("in", "out")]
        gains = [paired(mle[f"kl_{where}"] - measured[f"kl_{where}"]) for where in ("in", "out")]
        rows.append((name, (*kl, *gains)))
    return Grid(
        f"The family, {setting} setting: KL from the truth in nats, and the gain over MLE (paired)",
        "objective",
        ("KL in", "KL out", "gain in", "gain out"),
        tuple(rows),
    )


def _plane(setting: str, found: dict[str, Measures]) -> Plane:
    mle = found[MLE.name]
    trails = []
    for name, measured in found.items():
        if name != MLE.name:
            x, y = (np.stack([mle[f"kl_{where}"] - measured[f"kl_{where}"]], 1) for where in ("in", "out"))
            trails.append(Trail(name, x, y, ("",)))
    return Plane(setting, "gain in distribution (nats)", "gain out of distribution (nats)", tuple(trails))
