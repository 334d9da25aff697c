"""Results of a sweep: values of arms over seeds, and their differences to MLE, each pair of one seed."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from uncertune.errors import UserError
from uncertune.report.page import Column
from uncertune.report.tables import metric_column
from uncertune.statistics.intervals import Estimate, over_seeds

MLE = "mle"
LOWER = ("loss", "ece")
_NEITHER = ("kl", "entropy")

HOW = (
    "(arm − MLE) / MLE of each seed, signed so that higher is better: of the loss if the data has one. Lines are 95 % "
    "intervals over seeds."
)

Record = dict[str, Any]


@dataclass(frozen=True)
class Sweep:
    """The content of ``sweep.json``, with the data set in distribution first."""

    content: Record

    @property
    def inside(self) -> str:
        return str(self.content.get("in_data") or f"{self.content['data']}, held out")

    @property
    def paper(self) -> bool:
        """Whether the paper's claims are tested and its figures named."""
        return bool(self.content.get("paper"))

    @property
    def arms(self) -> list[Record]:
        """Names of the arms with a finished run."""
        done = {run["arm"] for run in self.content["runs"] if run["status"] == "done"}
        return [arm for arm in self.content["arms"] if arm["name"] in done]

    @property
    def others(self) -> list[str]:
        """Names of all arms but MLE."""
        return [arm["name"] for arm in self.arms if arm["name"] != MLE]

    @property
    def failed(self) -> list[Record]:
        return [run for run in self.content["runs"] if run["status"] == "failed"]

    @property
    def sets(self) -> dict[str, list[str]]:
        """Each data set's measures, the loss first if it has one."""
        out: dict[str, dict[str, None]] = {}
        for record in [self.content.get("base") or {}, *self.content["runs"]]:
            for name, measures in _by_set(record, self.inside):
                out.setdefault(name, {}).update(dict.fromkeys(measures))
        return {name: sorted(found, key=lambda one: one != "loss") for name, found in out.items() if found}

    @property
    def main(self) -> dict[str, str]:
        """Each data set's measure in figures: the loss, else the first with a direction."""
        out = {}
        for name, measures in self.sets.items():
            directed = [one for one in measures if one not in _NEITHER]
            if directed:
                out[name] = directed[0]
        return out

    @property
    def relative(self) -> list[str]:
        """Data sets on which a gain relative to MLE is defined: MLE's measure is 0 with no seed."""
        return [name for name, measure in self.main.items() if all(self.values(MLE, name, measure).values())]

    @property
    def outside(self) -> list[str]:
        """The data sets of ``relative`` that are out of distribution."""
        return [name for name in self.relative if name != self.inside]

    def values(self, arm: str, name: str, measure: str) -> dict[int, float]:
        """A measure by seed, of the finished runs that have it."""
        out = {}
        for run in self.content["runs"]:
            if run["arm"] == arm and run["status"] == "done":
                value = dict(_by_set(run, self.inside)).get(name, {}).get(measure)
                if value is not None:
                    out[run["seed"]] = float(value)
        return out

    def base(self, name: str, measure: str) -> float:
        """A measure of the base model; NaN if it was not measured."""
        value = dict(_by_set(self.content.get("base") or {}, self.inside)).get(name, {}).get(measure)
        return math.nan if value is None else float(value)

    def differences(self, arm: str, name: str, measure: str) -> dict[int, float]:
        """Arm − MLE by seed."""
        return less(self.values(arm, name, measure), self.values(MLE, name, measure))

    def ahead(self, arm: str, name: str) -> dict[int, float]:
        """arm − MLE on the set's main measure by seed, signed so that higher is better."""
        sign = -1.0 if self.main[name] in LOWER else 1.0
        return {seed: sign * one for seed, one in self.differences(arm, name, self.main[name]).items()}

    def gains(self, arm: str, name: str) -> dict[int, float]:
        """(arm − MLE) / MLE by seed, signed so that higher is better; empty for a set that is not in ``relative``."""
        if name not in self.relative:
            return {}
        theirs = self.values(MLE, name, self.main[name])
        return {seed: one / theirs[seed] for seed, one in self.ahead(arm, name).items()}

    def mean_gains(self, arm: str) -> dict[int, float]:
        """By seed, the mean over the data sets out of distribution; seeds that lack one are left out."""
        return mean_over([self.gains(arm, name) for name in self.outside])


def read_sweep(folder: Path) -> Sweep:
    """The sweep of a folder. Raises UserError if ``sweep.json`` is missing or damaged or has no finished MLE run."""
    path = folder / "sweep.json"
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"output_dir {str(folder)!r} holds no sweep: sweep.json cannot be read") from error
    except ValueError as error:
        raise UserError(f"{str(path)!r} is not JSON ({error}): start the sweep again") from error
    for name in ("arms", "runs", "data", "model"):
        if not isinstance(content, dict) or name not in content:
            raise UserError(f"{str(path)!r} has no {name!r}: start the sweep again")
    return Sweep(content)


def column(measure: str, name: str) -> Column:
    """The column of a measure of a data set."""
    better = {} if measure in _NEITHER else {measure: measure not in LOWER}
    found = metric_column({"task": name, "higher_is_better": better}, measure)
    return Column(name, name, found.better, found.digits, found.percent)


def mean(values: Mapping[int, float]) -> Estimate:
    """Over seeds."""
    return over_seeds(list(values.values()))


def less(one: Mapping[int, float], other: Mapping[int, float]) -> dict[int, float]:
    """one − other by seed, for the seeds that both have."""
    return {seed: one[seed] - other[seed] for seed in one if seed in other}


def mean_over(sets: Sequence[Mapping[int, float]]) -> dict[int, float]:
    """By seed, the mean over data sets; seeds that lack one are left out."""
    seeds = set.intersection(*map(set, sets)) if sets else set()
    return {seed: math.fsum(one[seed] for one in sets) / len(sets) for seed in sorted(seeds)}


def difference(sweep: Sweep, arm: str, name: str, measure: str) -> Estimate:
    """Arm − MLE over seeds."""
    return mean(sweep.differences(arm, name, measure))


def families(arms: Sequence[Record]) -> list[list[Record]]:
    """Arms that differ in q alone, ordered by it; those with a single q are left out."""
    found: dict[str, list[Record]] = {}
    for arm in arms:
        rest = {name: value for name, value in arm.items() if name not in ("name", "q")}
        if arm.get("q") is not None:
            found.setdefault(json.dumps(rest, sort_keys=True), []).append(arm)
    return [sorted(one, key=lambda arm: float(arm["q"])) for one in found.values() if len(one) > 1]


def _by_set(record: Record, inside: str) -> Iterator[tuple[str, Record]]:
    if record.get("in"):
        yield inside, record["in"]
    yield from (record.get("out") or {}).items()
