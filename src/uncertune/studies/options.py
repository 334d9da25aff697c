"""The options of ``uncertune study``, without a heavy import."""

from __future__ import annotations

import argparse
from dataclasses import dataclass

from uncertune import options
from uncertune.errors import UserError

SEEDS = {"polynomial": (1000, 100), "subset": (100, 20), "mnist": (5, 2), "language": (10, 3)}
"""Each study, with its seeds and those of ``--small``."""
DATA = ("mnist", "digits")


@dataclass(frozen=True)
class StudyOptions:
    """What ``uncertune study`` can be told."""

    name: str | None = None
    output_dir: str | None = None
    seeds: int | None = None
    seed: int = 0
    data: str | None = None
    data_dir: str | None = None
    small: bool = False

    @property
    def count(self) -> int:
        """How many seeds."""
        return self.seeds or SEEDS[str(self.name)][self.small]

    @property
    def source(self) -> str | None:
        """Where the digits of mnist come from, as ``digits.load`` takes it."""
        return self.data if self.data == "digits" else self.data_dir

    @property
    def command(self) -> str:
        """As it would be typed."""
        words = ["uncertune study", str(self.name), f"--output_dir {self.output_dir}", f"--seeds {self.count}"]
        words += [f"--seed {self.seed}"] if self.seed else []
        words += [f"--data {self.data}"] if self.data else []
        words += [f"--data_dir {self.data_dir}"] if self.data_dir else []
        return " ".join(words + ["--small"] * self.small)


HELP = {
    "name": f"{', '.join(SEEDS)}",
    "output_dir": "folder of the figures, the numbers and the page",
    "seeds": "independent repetitions; the study's own number",
    "seed": "the first seed",
    "data": "of mnist: mnist itself, or digits, the small ones of scikit-learn; mnist",
    "data_dir": "folder with MNIST's four files, or with mnist/ in it, else $UNCERTUNE_DATA, else the hub is asked",
    "small": "a quick version of the study: fewer seeds and steps",
}


def parser() -> argparse.ArgumentParser:
    """The parser of ``uncertune study``."""
    return options.parser(
        StudyOptions,
        "uncertune study",
        "The paper's toy studies: polynomial (Fig. 2C), subset (Fig. 11), mnist (Fig. 12), and language, whose true "
        "uncertainty is known. Figures, every number as CSV, and a page that states claim, test and outcome.",
        HELP,
        positional="name",
    )


def parse(arguments: list[str]) -> StudyOptions:
    """Options from flags, over those of ``--config``. Raises UserError, one line, for what cannot be used."""
    out = options.parse(StudyOptions, parser(), arguments)
    if out.name not in SEEDS:
        raise UserError(f"study {out.name!r}: choose from {', '.join(SEEDS)}")
    if not out.output_dir:
        raise UserError(f"output_dir is missing: give it, for example --output_dir studies/{out.name}")
    if out.seeds is not None and out.seeds < 2:
        raise UserError(f"seeds must be at least 2, so that there are intervals, got {out.seeds}")
    for name in ("data", "data_dir"):
        if getattr(out, name) is not None and out.name != "mnist":
            raise UserError(f"{name}: study {out.name} makes its own data; leave it out")
    if out.data is not None:
        options.check_choice("data", out.data, DATA)
    if out.data == "digits" and out.data_dir is not None:
        raise UserError("data_dir: digits come with scikit-learn; leave it out")
    return out
