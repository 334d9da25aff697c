"""The parts of a study: findings about claims, tables, drawings, and all numbers. ``writing`` writes them to disk."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from uncertune.statistics.findings import Finding
from uncertune.statistics.intervals import Estimate, over_seeds

Array = NDArray[np.float64]
Row = Mapping[str, float | str]
Progress = Callable[[str, int, int], None]
"""Called with the name of the current part, the number of steps done, and the number of steps."""


@dataclass(frozen=True)
class Line:
    """One line of a plot, a mean with its interval at each x; ``y`` is (seeds, points)."""

    name: str
    x: Sequence[float]
    y: Array

    def estimates(self) -> list[Estimate]:
        return [over_seeds(column) for column in np.asarray(self.y).T]


@dataclass(frozen=True)
class Panel:
    """One pair of axes with lines over a shared x."""

    title: str
    x_label: str
    y_label: str
    lines: tuple[Line, ...]
    log_x: bool = False
    log_y: bool = False
    ramp: bool = False
    """Whether the lines are an ordered family, with colours from dark to light."""


@dataclass(frozen=True)
class Trail:
    """Points joined in order, with intervals in both directions: ``x`` and ``y`` are (seeds, points).

    ``labels`` are written next to the points; "" for none.
    """

    name: str
    x: Array
    y: Array
    labels: tuple[str, ...]

    def estimates(self) -> tuple[list[Estimate], list[Estimate]]:
        x, y = ([over_seeds(column) for column in np.asarray(values).T] for values in (self.x, self.y))
        return x, y


@dataclass(frozen=True)
class Plane:
    """One pair of axes with trails, such as gains against losses."""

    title: str
    x_label: str
    y_label: str
    trails: tuple[Trail, ...]


@dataclass(frozen=True)
class Drawing:
    """A figure: its file's name, its title, and its panels side by side."""

    name: str
    title: str
    panels: tuple[Panel | Plane, ...]


@dataclass(frozen=True)
class Grid:
    """A table of estimates, with one column per quantity."""

    title: str
    label: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, tuple[Estimate, ...]], ...]


@dataclass(frozen=True)
class Answer:
    """The result of one question of a study. ``rows`` has all its numbers, one mapping per row."""

    findings: tuple[Finding, ...] = ()
    tables: tuple[Grid, ...] = ()
    drawings: tuple[Drawing, ...] = ()
    rows: tuple[Row, ...] = ()

    @classmethod
    def joined(cls, answers: Iterable[Answer]) -> Answer:
        """Both parts, one after the other."""
        parts = tuple(answers)
        return cls(
            tuple(one for part in parts for one in part.findings),
            tuple(one for part in parts for one in part.tables),
            tuple(one for part in parts for one in part.drawings),
            tuple(one for part in parts for one in part.rows),
        )


@dataclass(frozen=True)
class Study:
    """The outcome of a study."""

    name: str
    title: str
    lead: str
    setting: Mapping[str, str]
    answer: Answer


class Runner(Protocol):
    """The function ``run`` of a study's module."""

    def __call__(self, seeds: int, seed: int, small: bool, data: str | None, progress: Progress) -> Study: ...
