"""(e) Why masks by loss learn less here: a mask that depends on the word trains on a biased distribution.

Selection by loss trains on the improbable words of a context and not on its probable ones. Two scores that know the
truth and ignore the word separate this from the choice of contexts: the expected loss of the context, E_oracle[loss],
and the true excess loss, KL(oracle ‖ model).
"""

from __future__ import annotations

from uncertune.statistics.findings import Finding
from uncertune.statistics.intervals import over_seeds
from uncertune.studies.language.arms import BOTH, MASKED, MLE, NAMES, Arm
from uncertune.studies.language.objectives import gain
from uncertune.studies.language.training import trained
from uncertune.studies.language.truth import Measures, measures, rows_of
from uncertune.studies.language.world import World
from uncertune.studies.study import Answer, Grid, Progress

SCORES = ("loss", "expected loss", "excess loss")


def why(world: World, progress: Progress) -> Answer:
    """Masked MLE, alone and with distillation, by the word's loss and by two scores of its context."""
    arms = [Arm(one.objective, metric=score) for one in (MASKED, BOTH) for score in SCORES]
    results: dict[str, Measures] = {MLE.name: measures(world, trained(world, MLE))}
    for index, arm in enumerate(arms):
        progress("why", index, len(arms))
        results[arm.name] = measures(world, trained(world, arm))
    progress("why", len(arms), len(arms))
    rows = []
    for arm in arms:
        gains = [over_seeds(gain(results, arm.name, where)) for where in ("in", "out")]
        rows.append((arm.name, (*gains, over_seeds(results[arm.name]["calibration_in"]))))
    table = Grid(
        "Masks that see the word and masks that see its context alone: gain over MLE (paired)",
        "objective",
        ("gain in", "gain out", "error of calibration in"),
        tuple(rows),
    )
    findings = tuple(_finding(results, *pair) for pair in zip(arms[::3], arms[1::3], strict=True))
    return Answer(findings, (table,), (), rows_of("e", results))


def _finding(results: dict[str, Measures], loss: Arm, expected: Arm) -> Finding:
    return Finding(
        "why",
        f"{NAMES[loss.objective]}: blind to how the word came out, the mask learns more in distribution",
        f"KL in distribution, {loss.name} minus {expected.name} (nats)",
        over_seeds(results[loss.name]["kl_in"] - results[expected.name]["kl_in"]),
        "above",
    )
