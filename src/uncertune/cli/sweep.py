"""``uncertune sweep``: options, and the call."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from uncertune.cli import options
from uncertune.cli.options import Command
from uncertune.errors import UserError
from uncertune.settings import check_trust, convert, converted, read_mapping, shown, specs_of
from uncertune.sweep.request import Arms, Request, SweepOptions

PROGRAM = "uncertune sweep"


def parse(arguments: Sequence[str]) -> Request:
    """The file and the flags over it. Raises UserError, one line, for what cannot be used."""
    from uncertune.training import fields

    own = specs_of(SweepOptions)
    path, flags = options.split({**fields.specs(), **own}, arguments, PROGRAM)
    if path is None:
        raise UserError("--config is missing: a sweep needs a file with the settings of its runs and its arms")
    settings = read_mapping(path)
    check_trust(settings)
    sweep = settings.pop("sweep", None)
    if not isinstance(sweep, dict):
        raise UserError(f"--config {shown(path, 200)}: the mapping 'sweep' with the arms is missing")
    arms = _arms(sweep.pop("arms", None))
    if "output_dir" in settings:
        sweep.setdefault("output_dir", settings.pop("output_dir"))
    if type(sweep.get("measure_every")) is int:
        sweep["measure_every"] = str(sweep["measure_every"])
    given = converted(own, sweep, f"sweep of {shown(path, 200)}")
    given |= {name: convert(own[name], value) for name, value in flags.items() if name in own}
    chosen = COMMAND.build(given)
    over = {name: value for name, value in flags.items() if name not in own}
    return Request(chosen, arms, fields.checked(settings, f" in {shown(path, 200)}"), fields.checked(over))


def _arms(given: Any) -> Arms:
    grids = given if isinstance(given, list) else [given]
    if not all(isinstance(one, dict) and one.get("objective") for one in grids):
        raise UserError("sweep.arms must be a mapping, or a list of mappings, each with an objective")
    return [{name: _checked(name, value) for name, value in one.items()} for one in grids]


def _checked(name: Any, value: Any) -> list[Any]:
    """The values of a field to vary, each as its field holds it."""
    from uncertune.training import fields

    known = fields.specs()
    values = list(value) if isinstance(value, list) else [value]
    return [convert(known[name], one, f"sweep.arms.{name}") for one in values] if name in known else values


def check(given: SweepOptions) -> None:
    """Raise UserError for a seed or a data set that is named twice."""
    options.no_duplicates("seeds", given.seeds)
    if not given.seeds:
        raise UserError("seeds is empty: give at least one, for example --seeds 0,1,2")
    every = given.measure_every
    if every not in ("epoch", "end") and not (every.isdecimal() and 0 < int(every) < 10**9):
        raise UserError(f"measure_every must be epoch, end or a number of steps from 1, got {shown(every)}")
    called = [Path(name).name for name in given.out]
    twice = [name for name in called if called.count(name) > 1]
    if twice:
        raise UserError(f"out: {twice[0]!r} is named twice: keep one, or rename a file")


def run(request: Request) -> int:
    """Run the sweep; return 1 where a run failed."""
    from uncertune.sweep.sweep import sweep

    return 0 if sweep(request) else 1


class _Sweep(Command):
    """A command whose flags are also those of ``uncertune train``."""

    def run(self, arguments: Sequence[str]) -> int:
        if options.asks_help(arguments):
            print(self.help())
            return 0
        return run(parse(arguments))


COMMAND = _Sweep(
    "sweep",
    "train and measure objectives × metrics × levels × q × seeds from one file: one table, and the Pareto front",
    SweepOptions,
    lambda given: None,
    "Train every arm with every seed, measure each run in and out of distribution, and write one table (sweep.csv, "
    "sweep.json, sweep.md) with the Pareto front and its intervals over seeds. The file holds the settings of every "
    "run as `uncertune train` takes them, and under `sweep` these options and `arms`: a mapping, or a list of "
    "mappings, of objective, selection_* and other fields to one value or a list of values, each combination of which "
    "is an arm; a field that an objective does not use does not multiply it. MLE is always an arm: the baseline, and "
    "the teacher of the others. Run the same command again to resume and to retry failed runs. Any field of "
    "`uncertune train` is a flag too.",
    check,
)
