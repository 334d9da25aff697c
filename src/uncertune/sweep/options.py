"""The options of ``uncertune sweep``, without a heavy import: a file with the settings of every run, and ``sweep``."""

from __future__ import annotations

import argparse
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from uncertune import options
from uncertune.errors import UserError

Arms = list[dict[str, list[Any]]]


@dataclass(frozen=True)
class SweepOptions:
    """What ``uncertune sweep`` can be told besides the fields of ``uncertune train``."""

    output_dir: str | None = None
    seeds: str = "0,1,2"
    jobs: int | None = None
    fresh_rows: bool = False
    held_out: int = 64
    out: str = ""
    documents: int = 64
    measure_every: str = "epoch"
    tasks: str = ""
    limit: int | None = None
    batch_size: int = 16
    measure_dtype: str = "auto"
    paper: bool = False

    @property
    def chosen_seeds(self) -> tuple[int, ...]:
        return tuple(int(seed) for seed in options.numbers("seeds", self.seeds))

    @property
    def out_sets(self) -> tuple[str, ...]:
        return options.split(self.out)

    @property
    def harness_tasks(self) -> tuple[str, ...]:
        return options.split(self.tasks)


HELP = {
    "output_dir": "folder of the runs, the measures and the table",
    "seeds": "one run of every arm for each, with commas",
    "jobs": "processes that train at the same time; one for each GPU, else one",
    "fresh_rows": "with max_train_samples: each seed trains on rows of its own, drawn with it, not on the first ones",
    "held_out": "training rows kept apart to measure on, where the data has no test split",
    "out": "data sets out of distribution, with commas: DATA or DATA@SPLIT, as tokens:DATA of `uncertune evaluate`",
    "documents": "documents measured of each data set, the first ones",
    "measure_every": "when each run is measured: every epoch, a number of steps, or only at its end (end); "
    "sets save_strategy",
    "tasks": "tasks of lm-eval besides, with commas",
    "limit": "documents of each task of lm-eval; all",
    "batch_size": "documents measured together",
    "measure_dtype": "of the model while it is measured: auto (as stored), float32, bfloat16 or float16",
    "paper": "also test the paper's claims C3 and C5, and number the figures as the paper does",
}
DESCRIPTION = (
    "Train every arm with every seed, measure each run in and out of distribution, and write one table "
    "(sweep.csv, sweep.json, sweep.md) with the Pareto front and its intervals over seeds. The file holds the settings "
    "of every run as `uncertune train` takes them, and under `sweep` these options and `arms`: a mapping (or a list of "
    "mappings) of objective, selection_* and other fields to one value or a list of values, each combination of which "
    "is an arm; a field that an objective does not use does not multiply it. MLE is always there: the baseline, and "
    "the teacher of the others. Started again, the command goes on where it stopped and tries failed runs again. Any "
    "field of `uncertune train` is a flag too, over the file."
)


def parser() -> argparse.ArgumentParser:
    """The parser of ``uncertune sweep``."""
    return options.parser(SweepOptions, "uncertune sweep", DESCRIPTION, HELP)


@dataclass(frozen=True)
class Request:
    """What the command was asked: its options, the arms as written, the settings of every run, flags over them."""

    options: SweepOptions
    arms: Arms
    settings: dict[str, Any]
    flags: tuple[str, ...]


def parse(arguments: list[str]) -> Request:
    """The file and the flags over it. Raises UserError, one line, for what cannot be used."""
    command = parser()
    path = command.parse_known_args(arguments)[0].config
    if path is None:
        raise UserError("--config is missing: a sweep needs a file with the settings of its runs and its arms")
    settings = _read(path)
    own = settings.pop("sweep", None)
    if not isinstance(own, dict):
        raise UserError(f"--config {path!r}: the mapping 'sweep' with the arms is missing")
    arms = _arms(own.pop("arms", None))
    known = {one.name for one in fields(SweepOptions)}
    if "output_dir" in settings:
        own.setdefault("output_dir", settings.pop("output_dir"))
    command.set_defaults(**options.checked(own, SweepOptions, path))
    parsed, flags = command.parse_known_args(arguments)
    out = SweepOptions(**{name: value for name, value in vars(parsed).items() if name in known})
    _check(out)
    return Request(out, arms, settings, tuple(flags))


def _read(path: str) -> dict[str, Any]:
    import yaml

    try:
        values = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"--config {path!r} cannot be read: {' '.join(str(error).split())}") from error
    if not isinstance(values, dict):
        raise UserError(f"--config {path!r} must be a YAML mapping of field names to values")
    return values


def _arms(given: Any) -> Arms:
    grids = given if isinstance(given, list) else [given]
    if not all(isinstance(one, dict) and one.get("objective") for one in grids):
        raise UserError("sweep.arms must be a mapping, or a list of mappings, each with an objective")
    return [{name: _listed(value) for name, value in one.items()} for one in grids]


def _listed(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list) else [value]


def _check(out: SweepOptions) -> None:
    if not out.output_dir:
        raise UserError("output_dir is missing: give it, for example --output_dir sweeps/mine")
    seeds = options.numbers("seeds", out.seeds)
    if len(set(seeds)) < len(seeds) or any(seed < 0 or seed != int(seed) for seed in seeds):
        raise UserError(f"seeds: {out.seeds!r} must be different whole numbers from 0")
    options.check_counts(out, "jobs", "held_out", "documents", "limit", "batch_size")
    every = out.measure_every
    if every not in ("epoch", "end") and not (every.isdecimal() and int(every) > 0):
        raise UserError(f"measure_every must be epoch, end or a number of steps from 1, got {every!r}")
    called = [Path(name).name for name in out.out_sets]
    twice = [name for name in called if called.count(name) > 1]
    if twice:
        raise UserError(f"out: {twice[0]!r} is named twice: keep one, or rename a file")
    options.check_choice("measure_dtype", out.measure_dtype, options.DTYPES)
