"""The runs of a sweep: its arms, each checked before anything is trained, and seeds."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
import yaml

from uncertune.errors import UserError
from uncertune.objectives import OBJECTIVES
from uncertune.runs.folder import SILENT, SILENT_PREFIXES
from uncertune.runs.notes import note
from uncertune.selection import METRICS
from uncertune.sweep.options import END, EPOCH, Grids, Options, grids
from uncertune.training.arguments import Arguments, arguments_of
from uncertune.training.config import CACHE_FIELDS, OBJECTIVE_FIELDS, SELECTION_FIELDS, UncertuneConfig
from uncertune.training.family import ANCHOR_FIELDS, WEIGHTING_FIELDS

MLE = "mle"
ARM_FIELDS = (
    "objective",
    *(name for name in SELECTION_FIELDS if name != "rho_reference"),
    *(name for name in OBJECTIVE_FIELDS if name.startswith("teacher_")),
    "token_weighting",
    *WEIGHTING_FIELDS,
    *ANCHOR_FIELDS,
    "label_smoothing_factor",
)
_SHORT = {"selection_metric": "metric", "selection_level": "level", "selection_fraction": "q"}
_DEFAULTS = {name: getattr(UncertuneConfig, name) for name in ARM_FIELDS}
RUNS, DATA, CACHE = "runs", "data", "teacher_cache"


@dataclass(frozen=True)
class Arm:
    """An objective with the fields that it uses; ``values`` has all of ``ARM_FIELDS`` that have an effect."""

    values: dict[str, Any] = field(hash=False)

    @property
    def objective(self) -> str:
        return str(self.values["objective"])

    @property
    def selects(self) -> bool:
        return "selection_metric" in self.values

    @property
    def extra(self) -> str | None:
        """The ``extra`` of its metric."""
        return METRICS[self.values["selection_metric"]].extra if self.selects else None

    @property
    def distils(self) -> bool:
        return "teacher" in OBJECTIVES[self.objective].needs

    @property
    def name(self) -> str:
        """The objective, then metric and q if it selects, then the other fields that differ from the defaults."""
        parts = [self.objective]
        if self.selects:
            share = self.values.get("selection_fraction")
            parts += [str(self.values["selection_metric"]), *([] if share is None else [f"{share:g}"])]
        for one, value in self.values.items():
            if one in ("objective", "selection_metric", "selection_fraction") or value == _DEFAULTS[one]:
                continue
            plain = one.startswith("selection_") or one in ("teacher_truncation", "token_weighting")
            plain = plain and one != "selection_threshold"
            word = Path(str(value)).name
            parts.append(word if plain else f"{one.removeprefix('teacher_').removeprefix('selection_')}_{word}")
        return "-".join(parts)

    @property
    def axes(self) -> dict[str, Any]:
        """objective, metric, level and q (None without selection), and other fields that differ from the defaults."""
        short = {said: self.values.get(one) for one, said in _SHORT.items()}
        others = {one: value for one, value in self.values.items() if one not in (*_SHORT, "objective")}
        others = {one: value for one, value in others.items() if value != _DEFAULTS[one]}
        return {"objective": self.objective, **short, **others}


_PLAIN = Arm({"objective": MLE})
"""Plain fine-tuning: the baseline and the teacher."""


@dataclass(frozen=True)
class Run:
    """An arm with a seed; or (``arm`` is None) the reference of ``rho`` of that seed."""

    arm: Arm | None
    seed: int

    @property
    def label(self) -> str:
        return f"{self.arm.name if self.arm else 'rho_reference'}-s{self.seed}"


@dataclass(frozen=True)
class Plan:
    """The sweep's arms, and the settings that its runs have in common."""

    folder: Path
    arms: tuple[Arm, ...]
    given: dict[str, Any]
    """Fields of ``uncertune train`` that every run is given."""
    options: Options
    common: Arguments
    """Arguments of the MLE run; their data fields name the data."""

    @property
    def own_teacher(self) -> bool:
        return self.given.get("teacher") in (None, "auto")

    @property
    def own_rho(self) -> bool:
        """Whether an arm needs a holdout reference that the sweep trains."""
        uses = any(arm.extra == "reference_loss" for arm in self.arms)
        return uses and self.given.get("rho_reference") in (None, "auto")

    @property
    def measures_often(self) -> bool:
        """Whether runs are measured at more points than their end."""
        return bool(checkpointing(self.options.measure_every, self.given))

    def first(self) -> list[Run]:
        """The runs that others need: MLE, and the reference of rho."""
        seeds = self.options.seeds
        rho = [Run(None, seed) for seed in seeds] if self.own_rho else []
        return rho + [Run(arm, seed) for seed in seeds for arm in self.arms if arm.name == MLE]

    def rest(self) -> list[Run]:
        """All other runs, seed by seed."""
        seeds = self.options.seeds
        return [Run(arm, seed) for seed in seeds for arm in self.arms if arm.name != MLE]

    def needed(self, run: Run) -> list[Run]:
        """The runs of this sweep that a run needs: its teacher, and the reference of rho."""
        if run.arm is None:
            return []
        mle = [Run(_PLAIN, run.seed)] if self._taught(run.arm) and self.own_teacher else []
        return mle + ([Run(None, run.seed)] if run.arm.extra == "reference_loss" and self.own_rho else [])

    def run_folder(self, run: Run) -> Path:
        return self.folder / RUNS / run.label

    def settings(self, run: Run) -> dict[str, Any]:
        """The fields of one run, as ``uncertune train`` takes them."""
        out = {name: value for name, value in self.given.items() if name not in _SET_BY_US}
        arm = run.arm or _PLAIN
        out |= {one: value for one, value in arm.values.items() if one == "objective" or value != _DEFAULTS[one]}
        scored = arm.extra == "reference_loss"
        if self._taught(arm):
            out["teacher"] = self._teacher(run.seed)
        if scored:
            own = str(self.run_folder(Run(None, run.seed)))
            out["rho_reference"] = own if self.own_rho else self.given["rho_reference"]
        if arm.distils and self.given.get("teacher_cache", "hidden") != "none":
            out["teacher_cache"] = self.given.get("teacher_cache", "hidden")
            fill = self.given.get("teacher_cache_fill")
            out |= {"teacher_cache_fill": fill} if fill else {}
        if "teacher_cache" in out or scored:
            out["teacher_cache_dir"] = str(self.folder / CACHE / f"s{run.seed}")
        out.setdefault("use_cpu", not torch.accelerator.is_available())
        if run.arm is not None:
            out |= checkpointing(self.options.measure_every, out)
        return {**out, "seed": run.seed, "output_dir": str(self.run_folder(run))}

    def _taught(self, arm: Arm) -> bool:
        """Whether an arm has a teacher."""
        return arm.distils or (arm.extra == "reference_loss" and self.given.get("rho_reference") == "teacher")

    def _teacher(self, seed: int) -> str:
        if not self.own_teacher:
            return str(self.given["teacher"])
        return str(self.run_folder(Run(_PLAIN, seed)))


_SET_BY_US = (*ARM_FIELDS, *CACHE_FIELDS, "teacher", "rho_reference", "seed", "output_dir", "overwrite")


def plan(
    settings: Mapping[str, Any],
    arms: Mapping[str, Any] | Sequence[Mapping[str, Any]],
    output_dir: str | Path,
    *,
    overrides: Mapping[str, Any] | None = None,
    **options: Any,
) -> Plan:
    """Check the arguments of ``sweep``. Arms that the configuration refuses are printed, a line each, and left out."""
    overrides = overrides or {}
    wanted = grids(arms)
    _check(wanted, settings, overrides)
    given = [_PLAIN, *_combinations(wanted, settings)]
    every = list({one.name: one for one in given}.values())
    first = Plan(Path(output_dir).expanduser(), tuple(every), dict(settings), Options(**options), None)  # type: ignore[arg-type]
    common = arguments_of(first.settings(Run(every[0], 0)), overrides)
    first = replace(first, given={**settings, **overrides}, common=common)
    if common.mixture.datasets or common.data.dataset_streaming:
        raise UserError("datasets and dataset_streaming cannot be used in a sweep: give one dataset_name")
    kept = [every[0]]
    for arm in every[1:]:
        try:
            arguments_of(first.settings(Run(arm, 0)))
        except UserError as error:
            note(f"refused: {arm.name}: {error}")
        else:
            kept.append(arm)
    return replace(first, arms=tuple(kept))


def checkpointing(measure_every: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Fields that save a checkpoint at each point; empty for a run that is measured at its end alone."""
    if measure_every == END:
        return {}
    if measure_every == EPOCH:
        epochs, steps = float(settings.get("num_train_epochs", 3)), int(settings.get("max_steps", -1))
        return {"save_strategy": "epoch", "save_total_limit": None} if epochs > 1 or steps > 0 else {}
    return {"save_strategy": "steps", "save_steps": int(measure_every), "save_total_limit": None}


def _check(arms: Grids, settings: Mapping[str, Any], overrides: Mapping[str, Any]) -> None:
    """Refuse fields that cannot be varied, and fields that the sweep sets for each run."""
    for grid in arms:
        for name, values in grid.items():
            if name not in ARM_FIELDS:
                raise UserError(f"sweep.arms: {name!r} cannot be varied: choose from {', '.join(ARM_FIELDS)}")
            if not values:
                raise UserError(f"sweep.arms: {name} has no value: give one, or a list")
    for name in ("seed", "teacher_cache_dir", "overwrite", "fill_teacher_cache_only", "objective"):
        if name in settings:
            fix = {"seed": "give sweep.seeds", "objective": "give it in sweep.arms"}.get(name, "remove it")
            raise UserError(f"{name} is set by the sweep: {fix}")
    ours = sorted(overrides.keys() & {*_SET_BY_US, "hub_token", "push_to_hub_token"})
    if ours:
        raise UserError(f"{ours[0]} cannot be a flag of a sweep: set it in the file")


def _combinations(arms: Grids, settings: Mapping[str, Any]) -> list[Arm]:
    """Every combination of every grid, without the fields that have no effect in it."""
    base = {**_DEFAULTS, **{name: value for name, value in settings.items() if name in ARM_FIELDS}}
    out = []
    for grid in arms:
        for values in itertools.product(*grid.values()):
            one = {**base, **dict(zip(grid, values, strict=True))}
            out.append(Arm({name: value for name, value in one.items() if _has_effect(name, one)}))
    return out


def _has_effect(name: str, values: dict[str, Any]) -> bool:
    if name == "objective":
        return True
    objective = OBJECTIVES[values["objective"]]
    if name in ("token_weighting", "label_smoothing_factor"):  # of the label's term
        return "token_weighting" in objective.uses
    if name in WEIGHTING_FIELDS:
        return "token_weighting" in objective.uses and name.startswith(f"{values['token_weighting']}_")
    if name in ANCHOR_FIELDS:
        return name == "anchor" or values["anchor"] != "none"
    if name in OBJECTIVE_FIELDS or name == "normalize_by":
        return name in objective.fields
    if "selected" not in objective.uses:
        return False
    if name == "selection_fraction" and values["selection_threshold"] is not None:
        return False
    of_metrics = {one for metric in METRICS.values() for one in metric.fields}
    return name not in of_metrics or name in METRICS[values["selection_metric"]].fields


def resolved(plan: Plan) -> dict[str, Any]:
    """The common settings of runs and measures, for ``config.yaml``; arms, seeds and jobs may change."""
    options = plan.options
    kept = ("fresh_rows", "held_out", "documents", "limit", "measure_every", "measure_dtype")
    settings = plan.common.resolved()
    for name in ("output_dir", "seed", "objective", "logging_dir", "run_name"):
        settings.pop(name, None)
    given = {name: plan.given[name] for name in ("teacher", "rho_reference") if name in plan.given}
    rho = {"held_out_for_rho": plan.own_rho}
    return settings | given | {"sweep": {name: getattr(options, name) for name in kept} | rho}


def check_same(plan: Plan, path: Path) -> None:
    """Refuse a folder whose runs were made with other settings."""
    if not path.is_file():
        return
    there, here = yaml.safe_load(path.read_text(encoding="utf-8")), resolved(plan)
    there, here = ({**one, **one["sweep"]} for one in (there, here))
    names = [name for name in here if name not in SILENT and not name.startswith(SILENT_PREFIXES)]
    names = [name for name in names if name != "sweep" and there.get(name) != here[name]]
    if names:
        name = names[0]
        raise UserError(
            f"output_dir {str(plan.folder)!r} holds a sweep which differs in {name} ({there.get(name)!r} there, "
            f"{here[name]!r} here): choose another output_dir"
        )
