"""``uncertune sweep``: options, and the call."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from uncertune.cli import options
from uncertune.cli.options import Command
from uncertune.data.files import check_there
from uncertune.errors import UserError
from uncertune.settings import check_trust, convert, converted, option, read_mapping, shown, specs_of
from uncertune.sweep.options import Options, grids
from uncertune.training import fields

PROGRAM = "uncertune sweep"


@dataclass(frozen=True, kw_only=True)
class SweepOptions:
    """Options of ``uncertune sweep`` beside the fields of ``uncertune train``."""

    output_dir: str = option(
        help="folder of the runs, the measures and the table", unit="DIR", example="--output_dir sweeps/mine"
    )
    seeds: tuple[int, ...] = option((0, 1, 2), "one run of every arm for each", least=0, most=2**32 - 1)
    jobs: int | None = option(
        None, "processes that train at the same time", least=1, most=1024, unset="one for each GPU, else one"
    )
    fresh_rows: bool = option(
        False, "with max_train_samples: each seed trains on rows drawn with it, not on the first ones"
    )
    held_out: int = option(
        64, "training rows held out to measure on, if the data has no test split", least=1, unit="ROWS"
    )
    out: tuple[str, ...] = option(
        (), "data sets out of distribution: DATA or DATA@SPLIT, as tokens:DATA of `uncertune evaluate`"
    )
    documents: int = option(64, "documents measured of each data set, the first ones", least=1)
    measure_every: str = option(
        "epoch",
        "when each run is measured: at every epoch, every N steps, or at its end only (end); sets save_strategy",
        unit="epoch|N|end",
    )
    tasks: tuple[str, ...] = option((), "tasks of lm-eval that are measured too")
    limit: int | None = option(None, "documents of each task of lm-eval", least=1, unset="all")
    batch_size: int = option(16, "documents measured together", least=1)
    measure_dtype: str = option(
        "auto", "number format of the model while it is measured; auto: as stored", choices=options.DTYPES
    )
    paper: bool = option(False, "also test the paper's claims C3 and C5, and number the figures as the paper does")


def parse(arguments: Sequence[str]) -> dict[str, Any]:
    """The arguments of ``sweep``, from the file and the flags. Raises UserError for unusable values."""
    own = specs_of(SweepOptions)
    path, flags = options.split({**fields.specs(), **own}, arguments, PROGRAM)
    if path is None:
        raise UserError("--config is missing: a sweep needs a file with the settings of its runs and its arms")
    settings = read_mapping(path)
    check_trust(settings)
    sweep = settings.pop("sweep", None)
    if not isinstance(sweep, dict):
        raise UserError(f"--config {shown(path, 200)}: the mapping 'sweep' with the arms is missing")
    arms = grids(sweep.pop("arms", None))
    if "output_dir" in settings:
        sweep.setdefault("output_dir", settings.pop("output_dir"))
    if type(sweep.get("measure_every")) is int:
        sweep["measure_every"] = str(sweep["measure_every"])
    given = converted(own, sweep, f"sweep of {shown(path, 200)}")
    given |= {name: convert(own[name], value) for name, value in flags.items() if name in own}
    over = {name: value for name, value in flags.items() if name not in own}
    common, over = fields.checked(settings, f" in {shown(path, 200)}"), fields.checked(over)
    built = COMMAND.build(given)
    check_there({**common, **over}.get("dataset_name"), *(name.partition("@")[0] for name in built.out))
    return {"settings": common, "arms": arms, "overrides": over, **asdict(built)}


def check(given: SweepOptions) -> None:
    """Raise UserError for values that do not go together."""
    Options(**{name: value for name, value in asdict(given).items() if name != "output_dir"})


def call(given: Mapping[str, Any]) -> int:
    """Run the sweep and print its table; return 1 if a run failed."""
    from uncertune.sweep.sweep import sweep
    from uncertune.sweep.table import CSV

    done = sweep(**given)
    print(f"{done.text}\n\ntable: {done.page.parent / CSV}\npage:  {done.page}")
    if done.failed:
        print(f"failed: {', '.join(done.failed)}; run the same command again to retry", file=sys.stderr)
    return 1 if done.failed else 0


class _Sweep(Command):
    """A command whose flags are also those of ``uncertune train``."""

    def run(self, arguments: Sequence[str]) -> int:
        if options.asks_help(arguments):
            print(self.help())
            return 0
        return call(parse(arguments))


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
