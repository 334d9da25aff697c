"""(b) Every objective in and out of distribution, against MLE on the same seeds."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from uncertune.selection import METRICS
from uncertune.statistics.findings import Finding
from uncertune.statistics.intervals import Estimate, over_seeds
from uncertune.studies.language.arms import BOTH, DISTILL, FRACTIONS, MASKED, MLE, NAMES, ORACLE, Arm, table
from uncertune.studies.language.training import trained
from uncertune.studies.language.truth import Measures, measures, rows_of
from uncertune.studies.language.world import World
from uncertune.studies.study import Answer, Array, Drawing, Grid, Line, Panel, Plane, Progress, Trail

PRETRAINED = "pretrained"
Results = dict[str, Measures]


def objectives(world: World, progress: Progress) -> Answer:
    """The whole table, by exact KL."""
    results: Results = {PRETRAINED: measures(world, world.base)}
    arms = table()
    for index, arm in enumerate(arms):
        progress("objectives", index, len(arms))
        results[arm.name] = measures(world, trained(world, arm))
    progress("objectives", len(arms), len(arms))
    drawings = (
        Drawing(
            "frontier",
            "What each objective learned and lost, against MLE at 0; q is the share of tokens.",
            _frontiers(results),
        ),
        Drawing("fraction", "How many tokens to select, by loss (q = 1 is MLE).", _fractions(results)),
        Drawing("metric", "Which tokens to select: 25 %, by metric and level, against MLE.", _metrics(results)),
    )
    return Answer(_findings(results), (_grid(results), _kinds(results)), drawings, rows_of("b", results))


def gain(results: Results, name: str, where: str) -> Array:
    """KL of MLE minus KL of an arm, paired: above 0 the arm is nearer to the truth."""
    return results[MLE.name][f"kl_{where}"] - results[name][f"kl_{where}"]


def _grid(results: Results) -> Grid:
    columns = ("KL in", "KL out", "gain in", "gain out", "right word in")
    rows = tuple(
        (
            name,
            (
                *(over_seeds(found[f"kl_{where}"]) for where in ("in", "out")),
                *(paired(gain(results, name, where)) for where in ("in", "out")),
                over_seeds(found["right_in"]),
            ),
        )
        for name, found in results.items()
    )
    return Grid(
        "Every objective: KL from the truth in nats, and the gain over MLE (paired)", "objective", columns, rows
    )


def paired(difference: Array) -> Estimate:
    """An arm has no interval against itself."""
    return over_seeds(difference) if difference.any() else Estimate(0.0, float("nan"), float("nan"))


def _kinds(results: Results) -> Grid:
    names = (PRETRAINED, MLE.name, MASKED.name, Arm("masked_mle", fraction=0.75).name, BOTH.name, DISTILL.name)
    keys = [f"kl_{kind}_in" for kind in ("template", "content", "fact")]
    rows = tuple((name, tuple(over_seeds(results[name][key]) for key in keys)) for name in (*names, ORACLE.name))
    return Grid("KL in distribution by kind of word", "objective", ("template", "content", "fact"), rows)


def _frontiers(results: Results) -> tuple[Plane, ...]:
    def trail(name: str, arms: list[str], labels: tuple[str, ...]) -> Trail:
        x, y = (np.stack([gain(results, arm, where) for arm in arms], 1) for where in ("in", "out"))
        return Trail(name, x, y, labels)

    fractions = tuple(f"q {fraction:g}" for fraction in FRACTIONS[:-1])
    masked, both = (
        trail(NAMES[one], [Arm(one, fraction=q).name for q in FRACTIONS[:-1]], fractions)
        for one in ("masked_mle", "masked_mle_distill")
    )
    weighted = [arm for arm in table() if arm.weights and arm.objective == "mle"]
    alone = [trail(arm.name, [arm.name], ("",)) for arm in (DISTILL, ORACLE, *weighted)]
    axes = "gain in distribution (nats)", "gain out of distribution (nats)"
    return Plane("masks alone", *axes, (masked,)), Plane("with distillation, and no mask", *axes, (both, *alone))


def _fractions(results: Results) -> tuple[Panel, ...]:
    panels = []
    for where, title in (("in", "in distribution"), ("out", "out of distribution")):
        lines = []
        for objective in ("masked_mle", "masked_mle_distill"):
            values = [gain(results, Arm(objective, fraction=one).name, where) for one in FRACTIONS]
            lines.append(Line(NAMES[objective], FRACTIONS, np.stack(values, 1)))
        panels.append(Panel(title, "fraction q", "gain over MLE (nats)", tuple(lines)))
    return tuple(panels)


def _metrics(results: Results) -> tuple[Plane, ...]:
    planes = []
    for objective in ("masked_mle", "masked_mle_distill"):
        trails = []
        for metric in METRICS:
            arms = [Arm(objective, metric=metric, level=level).name for level in ("token", "document")]
            x, y = (np.stack([gain(results, arm, where) for arm in arms], 1) for where in ("in", "out"))
            trails.append(Trail(metric, x, y, ("tok", "doc")))
        planes.append(
            Plane(NAMES[objective], "gain in distribution (nats)", "gain out of distribution (nats)", tuple(trails))
        )
    return tuple(planes)


def _findings(results: Mapping[str, Measures]) -> tuple[Finding, ...]:
    def above(claim: str, says: str, better: str, worse: str, where: str) -> Finding:
        what = f"KL {'in' if where == 'in' else 'out of'} distribution, {worse} minus {better} (nats)"
        effect = over_seeds(results[worse][f"kl_{where}"] - results[better][f"kl_{where}"])
        return Finding(claim, says, what, effect, "above")

    mle, masked, both = MLE.name, MASKED.name, BOTH.name
    out = [
        above("C5", "masked MLE gains on MLE in distribution", masked, mle, "in"),
        above("C5", "masked MLE loses on MLE out of distribution", mle, masked, "out"),
        above("C5", "with distillation it gains on MLE in distribution", both, mle, "in"),
        above("C5", "with distillation it gains on masked MLE in distribution", both, masked, "in"),
        above("C5", "distillation recovers what masked MLE loses out of distribution", both, masked, "out"),
        above("C5", "with distillation it loses no more than MLE out of distribution", both, mle, "out"),
    ]
    for arm in (MASKED, BOTH):
        document = Arm(arm.objective, level="document").name
        out.append(
            above("C3", f"{NAMES[arm.objective]}: tokens beat documents in distribution", arm.name, document, "in")
        )
        for metric in list(METRICS)[1:]:
            other = Arm(arm.objective, metric=metric).name
            says = f"{NAMES[arm.objective]}: loss beats {metric} in distribution"
            out.append(above("C3", says, arm.name, other, "in"))
    return tuple(out)
