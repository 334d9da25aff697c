"""``uncertune study``: options, and the call."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from uncertune.cli.options import Command
from uncertune.errors import UserError
from uncertune.settings import option

SEEDS = {"polynomial": (1000, 100), "subset": (100, 20), "mnist": (5, 2), "language": (10, 3)}
"""Each study with its number of seeds, and that of ``--small``."""
DATA = ("mnist", "digits")


@dataclass(frozen=True, kw_only=True)
class StudyOptions:
    """Options of ``uncertune study``."""

    name: str = option(help="the study", choices=tuple(SEEDS), positional=True, example="polynomial")
    output_dir: str = option(
        help="folder of the figures, the numbers and the page", unit="DIR", example="--output_dir studies/mine"
    )
    seeds: int | None = option(None, "independent repetitions", least=2, unset="the study's own")
    seed: int = option(0, "the first seed", least=0)
    data: str | None = option(
        None, "digits of the study mnist: mnist, or the small ones of scikit-learn", choices=DATA, unset="mnist"
    )
    data_dir: str | None = option(
        None,
        "folder with MNIST's four files, or with mnist/ in it",
        unit="DIR",
        unset="$UNCERTUNE_DATA, then the hub",
    )
    small: bool = option(False, "a quick version: fewer seeds and steps")


def check(given: StudyOptions) -> None:
    """Raise UserError for data that the study does not take."""
    for name in ("data", "data_dir"):
        if getattr(given, name) is not None and given.name != "mnist":
            raise UserError(f"{name}: study {given.name} makes its own data; leave it out")
    if given.data == "digits" and given.data_dir is not None:
        raise UserError("data_dir: digits come with scikit-learn; leave it out")


def command_line(given: StudyOptions, seeds: int) -> str:
    """The command line."""
    words = ["uncertune study", given.name, f"--output_dir {given.output_dir}", f"--seeds {seeds}"]
    words += [f"--seed {given.seed}"] if given.seed else []
    words += [f"--data {given.data}"] if given.data else []
    words += [f"--data_dir {given.data_dir}"] if given.data_dir else []
    return " ".join(words + ["--small"] * given.small)


def call(given: StudyOptions) -> None:
    """Run the study and print its findings."""
    seeds = given.seeds or SEEDS[given.name][given.small]

    from uncertune.studies.running import study

    study(
        given.name,
        Path(given.output_dir),
        seeds=seeds,
        seed=given.seed,
        small=given.small,
        source=given.data if given.data == "digits" else given.data_dir,
        command=command_line(given, seeds),
    )


COMMAND = Command(
    "study",
    "run one of the paper's toy studies, or a language whose uncertainty is known",
    StudyOptions,
    call,
    "The paper's toy studies: polynomial (Fig. 2C), subset (Fig. 11), mnist (Fig. 12), and language, whose true "
    "uncertainty is known. Writes figures, every number as CSV, and a page that states claim, test and outcome.",
    check,
)
