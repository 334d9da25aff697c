"""The points at which a run is measured: its checkpoints of every epoch, or of every n steps, and its end.

``evaluation/LABEL.json`` has the points of one run and the minutes that measuring took. Once all points are measured,
only the checkpoint of the best point stays, without optimizer state.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path

from uncertune.runs.checkpoints import MARKER, checkpoints, step_of
from uncertune.runs.files import write_atomically
from uncertune.sweep.plan import Plan, Run

EVALUATION = "evaluation"
_TRAINING_STATE = ("optimizer.pt", "scheduler.pt", "scaler.pt", "rng_state*.pth", "training_args.bin")


@dataclass(frozen=True)
class Point:
    """A moment of a run; ``label`` names its results, ``epoch`` is None at the end of a run without checkpoints."""

    label: str
    step: int | None = None
    epoch: float | None = None


@dataclass(frozen=True)
class Points:
    """The points of one run in order, its end last, and the minutes that measuring took."""

    points: tuple[Point, ...]
    minutes: float = 0.0


def points_of(plan: Plan, run: Run) -> Points:
    """The points of a finished run, as recorded, else from its checkpoints."""
    try:
        found = json.loads(_record(plan, run).read_text(encoding="utf-8"))
        return Points(tuple(Point(**one) for one in found["points"]), found["minutes"])
    except (OSError, ValueError, KeyError, TypeError):
        pass
    states = {}
    for folder in checkpoints(plan.run_folder(run)):
        if (folder / MARKER).is_file() and (folder / "trainer_state.json").is_file():
            state = json.loads((folder / "trainer_state.json").read_text(encoding="utf-8"))
            states[step_of(folder)] = state
    if not states:
        return Points((Point(run.label),))
    last = max(states)
    steps, epochs = int(states[last]["max_steps"]), float(states[last]["num_train_epochs"])
    middle = [
        Point(f"{run.label}.step{step}", step, round(float(state["epoch"]), 3))
        for step, state in sorted(states.items())
        if step < steps
    ]
    return Points((*middle, Point(run.label, steps, epochs)))


def keep_points(plan: Plan, run: Run, points: Points) -> None:
    """Record the points of a run."""
    content = {"points": [asdict(one) for one in points.points], "minutes": round(points.minutes, 3)}
    write_atomically(_record(plan, run), json.dumps(content, indent=1))


def folder_of(plan: Plan, run: Run, point: Point) -> Path:
    """The folder of a point's model: a checkpoint, or the run's folder for its end."""
    folder = plan.run_folder(run)
    return folder if point.label == run.label else folder / f"checkpoint-{point.step}"


def prune(plan: Plan, run: Run, best: Point) -> None:
    """Delete the checkpoints of a measured run except the best point's, and that one's training state.

    Nothing is deleted of a run that is measured at its end alone.
    """
    if len(points_of(plan, run).points) < 2:
        return
    for folder in checkpoints(plan.run_folder(run)):
        if folder != folder_of(plan, run, best):
            shutil.rmtree(folder, ignore_errors=True)
            continue
        for pattern in _TRAINING_STATE:
            for path in folder.glob(pattern):
                path.unlink()


def _record(plan: Plan, run: Run) -> Path:
    return plan.folder / EVALUATION / f"{run.label}.json"
