"""(c, C9) Policy gradient ≥ distillation ≥ MLE under an oracle, as expected oracle reward (App. B.1).

The data have no noise: labels are drawn from the oracle, as B.1 assumes. The reward is 1 for the most probable word of
a context. Distillation is from the oracle; MLE sees its samples.
"""

from __future__ import annotations

import numpy as np

from uncertune.statistics.findings import Finding
from uncertune.statistics.intervals import over_seeds
from uncertune.studies.language.arms import DISTILL, MLE, ORACLE, REWARDED
from uncertune.studies.language.training import trained
from uncertune.studies.language.truth import Measures, measures, rows_of
from uncertune.studies.language.world import World
from uncertune.studies.stacked import Stacked
from uncertune.studies.study import Answer, Grid, Progress

TEST = "expected reward (1 for the most probable word) in distribution, paired difference"


def rewards(world: World, progress: Progress) -> Answer:
    """Policy gradient, distillation and MLE under the oracle."""
    here = world.changed(noise=0.0)
    arms = [MLE, DISTILL, ORACLE, *REWARDED]
    models: dict[str, Stacked] = {}
    for index, arm in enumerate(arms):
        progress("rewards", index, len(arms))
        models[arm.name] = trained(here, arm)
    progress("rewards", len(arms), len(arms))
    found: dict[str, Measures] = {"pretrained": measures(here, here.base)}
    found |= {name: measures(here, one) for name, one in models.items()}
    columns = {"reward_in": "reward in", "reward_out": "reward out", "kl_in": "KL in", "kl_out": "KL out"}
    grid = Grid(
        "Expected oracle reward, and KL from the truth (no noise in the data)",
        "objective",
        tuple(columns.values()),
        tuple((name, tuple(over_seeds(one[key]) for key in columns)) for name, one in found.items()),
    )
    return Answer(_findings(found, models), (grid,), (), rows_of("c", found))


def _findings(found: dict[str, Measures], models: dict[str, Stacked]) -> tuple[Finding, ...]:
    aligned, right, _, sampled = (arm.name for arm in REWARDED)
    apart = [
        (models[aligned].parameters[name] - value).detach().abs().flatten(1).amax(1).double().numpy()
        for name, value in models[ORACLE.name].parameters.items()
    ]

    def more(says: str, better: str, worse: str) -> Finding:
        difference = over_seeds(found[better]["reward_in"] - found[worse]["reward_in"])
        return Finding("C9", says, f"{TEST}: {better} minus {worse}", difference, "above")

    return (
        Finding(
            "C9",
            "aligned (A = p_oracle), policy gradient is distillation of the oracle",
            "largest difference of any parameter after training",
            over_seeds(np.max(apart, 0)),
            "below",
            1e-6,
        ),
        more("not aligned, policy gradient beats distillation of the oracle", right, ORACLE.name),
        more("the same with one sampled word a token", sampled, ORACLE.name),
        more("distillation of the oracle beats MLE", ORACLE.name, MLE.name),
        more("distillation of the MLE-trained reference beats MLE", DISTILL.name, MLE.name),
    )
