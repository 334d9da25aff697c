"""(h) The family of token-weighted objectives over epochs, where MLE stops in time and where it overfits (SPEC §8, E2).

Every arm is measured after 1, 2, 4, … epochs and compared with MLE in three ways: at the end, each at its own best
point (what early stopping keeps), and where both have reached the same KL in distribution.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from uncertune.statistics.intervals import Estimate, over_seeds
from uncertune.studies.language.arms import BOTH, DISTILL, MASKED, MLE, Arm
from uncertune.studies.language.objectives import paired
from uncertune.studies.language.path import lost_at
from uncertune.studies.language.training import trained
from uncertune.studies.language.truth import Measures, measures
from uncertune.studies.language.world import World
from uncertune.studies.stacked import Stacked
from uncertune.studies.study import Answer, Array, Drawing, Grid, Plane, Progress, Row, Trail

SETTINGS: dict[str, dict[str, Any]] = {"base": {}, "overfitted": {"epochs": 64, "rate": 3e-3}}
WEIGHTINGS = ("dft", "eaft", "infosft", "focal")
FRACTIONS = (0.25, 0.5, 0.75)
ANCHORS = (0.03, 0.1, 0.3, 1.0)
MEMBERS = 4
EARLY, EARLY_DISTILL = Arm("masked_mle_distill", teacher="best"), Arm("distill", teacher="best")
FAMILY = (
    MLE,
    *(Arm("mle", weighting=name) for name in WEIGHTINGS),
    Arm("mle", smoothing=0.1),
    *(Arm("mle", anchor=weight) for weight in ANCHORS),
    *(Arm("mle", weighting=name, anchor=0.1) for name in WEIGHTINGS),
    *(Arm("masked_mle", fraction=fraction) for fraction in FRACTIONS),
    Arm("masked_mle", fraction=0.75, order="lowest"),
    *(Arm("masked_mle", fraction=fraction, anchor=0.1) for fraction in FRACTIONS),
    *(Arm("masked_mle_distill", fraction=fraction) for fraction in FRACTIONS),
    *(Arm("masked_mle_distill", fraction=fraction, anchor=0.1) for fraction in FRACTIONS),
    EARLY,
    Arm("masked_mle_distill", members=MEMBERS),
    DISTILL,
    EARLY_DISTILL,
    Arm("distill", members=MEMBERS),
)
DRAWN = (
    *(MLE, Arm("mle", weighting="eaft"), Arm("mle", anchor=0.1), Arm("mle", anchor=0.3), MASKED),
    *(BOTH, Arm("masked_mle_distill", anchor=0.1), EARLY, DISTILL, EARLY_DISTILL),
)
"""The arms of the figure; the tables have all."""

Curve = dict[str, Array]
"""``kl_in`` and ``kl_out`` (M, points), from the pretrained model on."""


def family(world: World, progress: Progress) -> Answer:
    """Every arm in both settings, by exact KL from the truth."""
    rows: list[Row] = []
    planes, grids = [], []
    for number, (setting, fields) in enumerate(SETTINGS.items()):
        here = world.changed(**fields)
        epochs = points(here.setting.epochs)
        found: dict[str, Curve] = {}
        for index, arm in enumerate(FAMILY):
            progress("the family", number * len(FAMILY) + index, len(SETTINGS) * len(FAMILY))
            found[arm.name] = _curve(here, arm, epochs)
        planes.append(_plane(setting, found, epochs))
        grids.append(_grid(setting, found, epochs))
        rows += _rows(setting, found, epochs)
    progress("the family", len(SETTINGS) * len(FAMILY), len(SETTINGS) * len(FAMILY))
    title = "From the pretrained model on, after 1, 2, 4, … epochs; the lower left is better."
    return Answer((), tuple(grids), (Drawing("family", title, tuple(planes)),), tuple(rows))


def points(epochs: int) -> list[int]:
    """The epochs that are measured: the powers of two, and the last."""
    return sorted({2**power for power in range(epochs.bit_length())} | {epochs})


def _curve(world: World, arm: Arm, epochs: list[int]) -> Curve:
    seen: list[Measures] = [measures(world, world.base)]
    done = 0

    def after(models: Stacked) -> None:
        nonlocal done
        done += 1
        if done in epochs:
            seen.append(measures(world, models))

    trained(world, arm, after)
    return {key: np.stack([one[key] for one in seen], 1) for key in ("kl_in", "kl_out")}


def compared(one: Curve, mle: Curve) -> dict[str, Array]:
    """Gains over MLE (M,) in nats, in and out of distribution: at the end, at each arm's best point, and, out of
    distribution, where both first reach the same KL in it."""
    out = {f"{key}_end": mle[f"kl_{key}"][:, -1] - one[f"kl_{key}"][:, -1] for key in ("in", "out")}
    best = [curve["kl_in"].argmin(1)[:, None] for curve in (one, mle)]
    for key in ("in", "out"):
        mine, theirs = (
            np.take_along_axis(curve[f"kl_{key}"], at, 1)[:, 0] for curve, at in zip((one, mle), best, strict=True)
        )
        out[f"{key}_best"] = theirs - mine
    level = np.maximum(one["kl_in"].min(1), mle["kl_in"].min(1))
    mine, theirs = (lost_at(curve["kl_in"], curve["kl_out"], level) for curve in (one, mle))
    return out | {"out_equal": theirs - mine}


def _grid(setting: str, found: Mapping[str, Curve], epochs: list[int]) -> Grid:
    keys = {
        "in_end": "gain in, end",
        "out_end": "gain out, end",
        "in_best": "gain in, best",
        "out_best": "gain out, best",
        "out_equal": "gain out, equal gain in",
    }
    rows = []
    for name, curve in found.items():
        gains = compared(curve, found[MLE.name])
        absolute = [over_seeds(curve[key][:, -1]) for key in ("kl_in", "kl_out")]
        lowest = over_seeds(curve["kl_in"].min(1))
        estimates: tuple[Estimate, ...] = (*absolute, lowest, *(paired(gains[key]) for key in keys))
        rows.append((name, estimates))
    return Grid(
        f"The family over {epochs[-1]} epochs, {setting} setting: KL from the truth, and gains over MLE (nats)",
        "objective",
        ("KL in, end", "KL out, end", "KL in, best", *keys.values()),
        tuple(rows),
    )


def _plane(setting: str, found: Mapping[str, Curve], epochs: list[int]) -> Plane:
    unmarked = ("",) * (len(epochs) + 1)
    marked = ("start", *unmarked[1:-1], f"{epochs[-1]} epochs")
    trails = [
        Trail(arm.name, found[arm.name]["kl_in"], found[arm.name]["kl_out"], marked if arm == MLE else unmarked)
        for arm in DRAWN
        if arm.name in found
    ]
    return Plane(setting, "KL in distribution (nats)", "KL out of distribution (nats)", tuple(trails))


def _rows(setting: str, found: Mapping[str, Curve], epochs: list[int]) -> list[Row]:
    return [
        {"question": "h", "setting": setting, "arm": name, "seed": seed, "epoch": epoch,
         **{key: float(values[seed, place]) for key, values in curve.items()}}
        for name, curve in found.items()
        for seed in range(len(curve["kl_in"]))
        for place, epoch in enumerate([0, *epochs])
    ]  # fmt: skip
