"""(d) When do the masks help? Gain over MLE as one thing at a time changes."""

from __future__ import annotations

import numpy as np

from uncertune.statistics.intervals import over_seeds
from uncertune.studies.language.arms import BOTH, MASKED, MLE, NAMES
from uncertune.studies.language.training import trained
from uncertune.studies.language.truth import measures
from uncertune.studies.language.world import World
from uncertune.studies.study import Answer, Array, Drawing, Grid, Line, Panel, Progress, Row

GRID: dict[str, tuple[float, ...]] = {
    "noise": (0.0, 0.02, 0.1, 0.3),
    "shift": (0.1, 0.25, 0.5, 1.0),
    "texts": (32, 128, 512),
    "epochs": (4, 16, 64),
    "certainty": (0.0, 0.5, 0.9, 1.0),
}
LABELS = {
    "noise": "label noise: share of words replaced",
    "shift": "shift: share of rows drawn again",
    "texts": "texts to post-train on",
    "epochs": "epochs",
    "certainty": "certainty: share moved to the top word",
}


def when(world: World, small: bool, progress: Progress) -> Answer:
    """The grid; ``small`` takes only the ends of each axis."""
    grid = {what: (values[0], values[-1]) if small else values for what, values in GRID.items()}
    settings = [(what, value) for what, values in grid.items() for value in values]
    gains: dict[tuple[str, float], dict[str, Array]] = {}
    for index, (what, value) in enumerate(settings):
        progress("when it helps", index, len(settings))
        gains[what, value] = _gains(world.changed(**{what: type(getattr(world.setting, what))(value)}))
    progress("when it helps", len(settings), len(settings))
    names = [f"{NAMES[arm.objective]}, {where}" for arm in (MASKED, BOTH) for where in ("in", "out")]
    panels = tuple(
        Panel(
            what,
            LABELS[what],
            "gain over MLE (nats)",
            tuple(Line(name, values, np.stack([gains[what, value][name] for value in values], 1)) for name in names),
            log_x=what in ("texts", "epochs"),
        )
        for what, values in grid.items()
    )
    table = Grid(
        "Gain over MLE (KL from the truth, nats), one thing changed at a time",
        "setting",
        tuple(names),
        tuple(
            (f"{what} {value:g}", tuple(over_seeds(one[name]) for name in names))
            for (what, value), one in gains.items()
        ),
    )
    rows: list[Row] = [
        {"question": "d", "setting": what, "value": value, "arm": name, "seed": seed, "gain": float(one[name][seed])}
        for (what, value), one in gains.items()
        for name in names
        for seed in range(world.setting.seeds)
    ]
    title = "When the masks help: above 0 is nearer to the truth than MLE, in or out of distribution."
    drawings = (Drawing("when", title, panels[:3]), Drawing("when-more", title, panels[3:]))
    return Answer((), (table,), drawings, tuple(rows))


def _gains(here: World) -> dict[str, Array]:
    base = measures(here, trained(here, MLE))
    out = {}
    for arm in (MASKED, BOTH):
        found = measures(here, trained(here, arm))
        for where in ("in", "out"):
            out[f"{NAMES[arm.objective]}, {where}"] = base[f"kl_{where}"] - found[f"kl_{where}"]
    return out
