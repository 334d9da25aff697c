"""Forgetting against learning: in and out of distribution epoch by epoch, and compared at equal learning.

After equally many steps an objective that learns slowly has also forgotten little. Here the KL out of distribution is
compared where an arm and MLE are equally near to the truth in distribution.
"""

from __future__ import annotations

import numpy as np

from uncertune.statistics.findings import Finding
from uncertune.statistics.intervals import over_seeds
from uncertune.studies.language.arms import BOTH, DISTILL, MASKED, MLE, NAMES, ORACLE, Arm
from uncertune.studies.language.training import trained
from uncertune.studies.language.truth import Measures, measures
from uncertune.studies.language.world import World
from uncertune.studies.study import Answer, Array, Drawing, Plane, Progress, Row, Trail

ARMS = (MLE, MASKED, BOTH, Arm("masked_mle", metric="random"), DISTILL, ORACLE)


def path(world: World, progress: Progress) -> Answer:
    """The same setting with twice as many epochs."""
    here = world.changed(epochs=2 * world.setting.epochs)
    found: dict[str, dict[str, Array]] = {}
    for index, arm in enumerate(ARMS):
        progress("paths", index, len(ARMS))
        seen: list[Measures] = [measures(here, here.base)]
        trained(here, arm, lambda models, seen=seen: seen.append(measures(here, models)))  # type: ignore[misc]
        found[_name(arm)] = {where: np.stack([one[f"kl_{where}"] for one in seen], 1) for where in ("in", "out")}
    progress("paths", len(ARMS), len(ARMS))
    marked = {0: "start", here.setting.epochs: f"{here.setting.epochs} epochs"}
    trails = tuple(
        Trail(
            name, one["in"], one["out"],
            tuple(marked.get(epoch, "") if number == 0 else "" for epoch in range(one["in"].shape[1])),
        )
        for number, (name, one) in enumerate(found.items())
    )  # fmt: skip
    plane = Plane("epoch by epoch", "KL in distribution (nats)", "KL out of distribution (nats)", trails)
    rows: list[Row] = [
        {"question": "e", "arm": name, "seed": seed, "epoch": epoch,
         "kl_in": float(one["in"][seed, epoch]), "kl_out": float(one["out"][seed, epoch])}
        for name, one in found.items()
        for seed in range(here.setting.seeds)
        for epoch in range(one["in"].shape[1])
    ]  # fmt: skip
    drawing = Drawing("path", "What is lost for what is learned, from the pretrained model on.", (plane,))
    findings = tuple(_finding(_name(arm), found[_name(arm)], found[_name(MLE)]) for arm in (MASKED, BOTH))
    return Answer(findings, (), (drawing,), tuple(rows))


def _name(arm: Arm) -> str:
    return NAMES[arm.objective] + (f", {arm.metric}" if "masked" in arm.objective else "")


def _finding(name: str, one: dict[str, Array], mle: dict[str, Array]) -> Finding:
    level = np.maximum(one["in"].min(1), mle["in"].min(1))
    lost = [lost_at(each["in"], each["out"], level) for each in (one, mle)]
    worse = "mask" in name and "distillation" not in name
    says = f"{name} {'loses more' if worse else 'loses less'} out of distribution than MLE for the same gain in it"
    test = f"KL out of distribution where both first reach the same KL in it, {name} minus MLE (nats)"
    return Finding("C5", says, test, over_seeds(lost[0] - lost[1]), "above" if worse else "below")


def lost_at(kl_in: Array, kl_out: Array, level: Array) -> Array:
    """``kl_out`` (M, E) where ``kl_in`` (M, E) first falls to ``level`` (M,), interpolated linearly between epochs.

    Each row of ``kl_in`` must reach its level.
    """
    out = []
    for x, y, border in zip(kl_in, kl_out, level, strict=True):
        after = int((x <= border).argmax())
        if after == 0:
            out.append(float(y[0]))
            continue
        share = (x[after - 1] - border) / (x[after - 1] - x[after])
        out.append(float(y[after - 1] + share * (y[after] - y[after - 1])))
    return np.array(out)
