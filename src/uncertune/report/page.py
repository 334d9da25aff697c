"""The content of a page as frozen data. ``html`` draws it, ``tables`` prints its tables.

Every string here may come from strangers (a data set, a model), so it is always shown as text, never as markup.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from uncertune.statistics.intervals import Estimate


@dataclass(frozen=True)
class FormattedValue:
    """A formatted value, and the interval that is shown below it."""

    text: str
    interval: str = ""


@dataclass(frozen=True)
class Measured:
    """A value and half the width of its 95 % interval (None: unknown), in the unit of the value."""

    value: float
    half: float | None = None


Value: TypeAlias = float | str | FormattedValue | Measured | None


@dataclass(frozen=True)
class Facts:
    """Names and values: the model, the data, the settings of a run; ``folded`` until a reader opens them."""

    title: str
    items: tuple[tuple[str, str], ...]
    folded: bool = False


@dataclass(frozen=True)
class Column:
    """One column of numbers; or of ``words``, which wrap.

    ``digits`` counts those after the point. With ``percent`` the value is a share: 0.412 is shown as 41.2% and its
    differences are in percentage points. ``better`` is None if neither direction is better. With ``sign`` a positive
    value is shown with a +.
    """

    key: str
    label: str
    better: Literal["higher", "lower"] | None
    digits: int
    percent: bool = False
    sign: bool = False
    words: bool = False


@dataclass(frozen=True)
class Table:
    """Rows of values, each with its difference from the row named ``baseline`` (None: no differences).

    A row is a mapping from column keys to values; ``row[label_key]`` is its name. A missing key is None, shown as –.

    Raises:
        ValueError: no row is named ``baseline``.
    """

    title: str
    caption: str
    columns: tuple[Column, ...]
    rows: tuple[Mapping[str, Value], ...]
    label_key: str
    baseline: str | None

    def __post_init__(self) -> None:
        if self.baseline is not None and self.baseline_row is None:
            names = ", ".join(repr(row.get(self.label_key)) for row in self.rows) or "none"
            raise ValueError(f"table {self.title!r}: no row has {self.label_key} = {self.baseline!r}; rows: {names}")

    @property
    def baseline_row(self) -> Mapping[str, Value] | None:
        """The first row of this name."""
        if self.baseline is None:
            return None
        return next((row for row in self.rows if row.get(self.label_key) == self.baseline), None)


@dataclass(frozen=True)
class Series:
    """One line, with an interval ``band`` (lower and upper ends) around it, and ``dots`` at its points.

    A NaN or an infinite y is a gap.

    Raises:
        ValueError: ``x`` and ``y`` differ in length.
    """

    name: str
    x: tuple[float, ...]
    y: tuple[float, ...]
    band: tuple[tuple[float, ...], tuple[float, ...]] | None = None
    dots: bool = False

    @property
    def window(self) -> int:
        """Points of the moving average of a page's smooth line; 0: too few points, or dots."""
        return 0 if self.dots or len(self.x) < 20 else max(5, len(self.x) // 20)

    def __post_init__(self) -> None:
        if len(self.x) != len(self.y):
            raise ValueError(f"series {self.name!r}: {len(self.x)} x values and {len(self.y)} y values")


@dataclass(frozen=True)
class Curves:
    """One plot of lines. A series of the same name has the same colour and dashes over the whole page."""

    title: str
    caption: str
    x_label: str
    y_label: str
    series: tuple[Series, ...]
    percent: bool = False


@dataclass(frozen=True)
class Point:
    """Two quantities of one name, each with an interval; a NaN end is not drawn."""

    name: str
    x: Estimate
    y: Estimate

    @property
    def known(self) -> bool:
        """Whether both values are finite; the intervals may be unknown."""
        return math.isfinite(self.x.value) and math.isfinite(self.y.value)


@dataclass(frozen=True)
class Points:
    """A plot of one quantity against another, with lines at zero and through the points named in ``front``."""

    title: str
    caption: str
    x_label: str
    y_label: str
    points: tuple[Point, ...]
    percent: bool = True
    front: tuple[str, ...] = ()

    @property
    def front_line(self) -> tuple[list[float], list[float]]:
        """x and y of the known points of the front, by x."""
        line = sorted((one.x.value, one.y.value) for one in self.points if one.known and one.name in self.front)
        return [x for x, _ in line], [y for _, y in line]


@dataclass(frozen=True)
class Trail:
    """One name at several moments, in order; each point is named after its moment. NaN ends are not drawn."""

    name: str
    points: tuple[Point, ...]

    @property
    def known(self) -> list[Point]:
        """The points whose values are finite."""
        return [point for point in self.points if point.known]


@dataclass(frozen=True)
class Trails:
    """A plot of one quantity against another over time: a line per name, a dot per moment, a larger dot at the end."""

    title: str
    caption: str
    x_label: str
    y_label: str
    trails: tuple[Trail, ...]
    percent: bool = True


@dataclass(frozen=True)
class Bar:
    """One value from zero, with its interval; ``note`` is shown next to it."""

    name: str
    value: Estimate
    note: str = ""


@dataclass(frozen=True)
class Bars:
    """Groups of bars from zero on one axis that reaches at least ``end``, each group under its heading."""

    title: str
    caption: str
    axis: str
    groups: tuple[tuple[str, tuple[Bar, ...]], ...]
    percent: bool = True
    end: float = 0.0


@dataclass(frozen=True)
class Token:
    """One token as decoded, its score (None: not scored), and whether it is trained on as one of the hardest."""

    text: str
    score: float | None
    selected: bool
    response: bool


@dataclass(frozen=True)
class Frame:
    """One document at one moment of training."""

    label: str
    tokens: tuple[Token, ...]


@dataclass(frozen=True)
class TokenDocument:
    """One document, at several moments."""

    title: str
    frames: tuple[Frame, ...]


@dataclass(frozen=True)
class Tokens:
    """Documents coloured token by token. ``measure`` and ``unit`` name what the scores are."""

    title: str
    caption: str
    documents: tuple[TokenDocument, ...]
    measure: str = "loss"
    unit: str = "nats"


@dataclass(frozen=True)
class AnswerRow:
    """One prompt, the expected answer, and each model's answer; ``correct`` if it could be checked.

    ``notes`` are shown below the answer of that name, such as a judge's verdict.
    """

    prompt: str
    reference: str
    answers: Mapping[str, str]
    correct: Mapping[str, bool] | None = None
    notes: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


@dataclass(frozen=True)
class Answers:
    """Generated answers side by side, one column for each of ``names``; many rows are paginated."""

    title: str
    caption: str
    names: tuple[str, ...]
    rows: tuple[AnswerRow, ...]


Section: TypeAlias = Facts | Table | Curves | Points | Trails | Bars | Tokens | Answers


@dataclass(frozen=True)
class Page:
    """One page: a title, a lead of a few sentences, and its sections in order.

    ``links`` are names and relative addresses of related pages, ``command`` what a reader may copy to a terminal.
    """

    title: str
    lead: str
    sections: tuple[Section, ...]
    links: tuple[tuple[str, str], ...] = ()
    command: str = ""
