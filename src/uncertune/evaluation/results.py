"""Results on disk, one file per model and task, and the table of all of them.

``OUT/LABEL/TASK.json`` has the measures and their settings, ``OUT/LABEL/TASK.samples.jsonl`` one line per document;
``OUT/results.json`` and ``OUT/results.md`` are written from all such files, whichever command wrote them.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from uncertune.errors import UserError
from uncertune.report import Column, Table, to_markdown
from uncertune.report.page import Measured
from uncertune.report.tables import headline, metric_column
from uncertune.runs.files import write_atomically
from uncertune.statistics.intervals import LEVEL

SAMPLES = ".samples.jsonl"
FEW_DOCUMENTS = 30


@dataclass(frozen=True)
class Place:
    """The paths of one model's result on one task."""

    folder: Path
    label: str
    task: str

    @property
    def stem(self) -> str:
        return re.sub(r"[^\w.+=-]+", "-", self.task).strip("-.")

    @property
    def result(self) -> Path:
        return self.folder / self.label / f"{self.stem}.json"

    @property
    def samples(self) -> Path:
        return self.folder / self.label / f"{self.stem}{SAMPLES}"

    def answers(self, weights: Mapping[str, Any], settings: Mapping[str, Any]) -> Path:
        """The file that stores answers as they come, named after what they depend on."""
        digest = hashlib.blake2b(json.dumps([weights, settings], sort_keys=True).encode(), digest_size=6)
        return self.folder / self.label / f".{self.stem}.answers-{digest.hexdigest()}"

    def forget_answers(self) -> None:
        """Delete the answers that unfinished runs stored, once there is a result."""
        for left in (self.folder / self.label).glob(f".{self.stem}.answers-*"):
            left.unlink()


def is_done(place: Place, measured: Mapping[str, Mapping[str, Any]], *, overwrite: bool) -> bool:
    """Whether the result exists already.

    ``measured`` has ``weights``, ``settings`` and ``preparation``. Raises UserError for a result of other ones.
    """
    if not place.result.is_file() or overwrite:
        return False
    there = read(place.result)
    if there is None:
        raise UserError(f"output_dir: {str(place.result)!r} is not a result of this command: choose another folder")
    for what, mine in measured.items():
        _check_equal(
            place, place.label, what, mine, there.get(what) or {}, "choose another folder or label, or --overwrite"
        )
    return place.samples.is_file()


def check_alike(place: Place, settings: Mapping[str, Any], preparation: Mapping[str, Any]) -> None:
    """Refuse to add a result next to another model's with other settings.

    Models of different tokenizers may differ in their preparation.
    """
    for other in sorted(place.folder.glob(f"*/{place.stem}.json")):
        there = read(other)
        if there is None or there["label"] == place.label or there["task"] != place.task:
            continue
        fix = "one table needs one way to measure; choose another folder"
        _check_equal(place, there["label"], "settings", settings, there["settings"], fix)
        theirs = there.get("preparation") or {}
        if theirs.get("tokenizer") == preparation["tokenizer"]:
            _check_equal(place, there["label"], "preparation", preparation, theirs, fix)


def _check_equal(
    place: Place, label: str, what: str, mine: Mapping[str, Any], theirs: Mapping[str, Any], fix: str
) -> None:
    for name, value in mine.items():
        if theirs.get(name) != value:
            raise UserError(
                f"output_dir {str(place.folder)!r} holds {place.task} of {label!r} with {what} {name} "
                f"{theirs.get(name)!r}, here it is {value!r}: {fix}"
            )


def read(path: Path) -> dict[str, Any] | None:
    """A result, or None if the file is not a result."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    needed = {"task": str, "model": str, "label": str, "metrics": dict, "settings": dict, "weights": dict}
    if not isinstance(found, dict) or not isinstance(found.get("preparation", {}), dict):
        return None
    return found if all(isinstance(found.get(name), kind) for name, kind in needed.items()) else None


def write(place: Place, result: Mapping[str, Any], samples: Iterable[Mapping[str, Any]]) -> None:
    """Write the samples first, so that a result always has them."""
    lines = "".join(json.dumps(one, ensure_ascii=False) + "\n" for one in samples)
    write_atomically(place.samples, lines)
    write_atomically(place.result, json.dumps(result, indent=1, ensure_ascii=False))


def collect(folder: Path, labels: Sequence[str] = (), tasks: Sequence[str] = ()) -> list[dict[str, Any]]:
    """Every result in the folder: the given labels and tasks first, in that order, then the others by name."""
    found = [
        one for path in sorted(folder.glob("*/*.json")) if (one := read(path)) and one["label"] == path.parent.name
    ]
    return sorted(found, key=lambda one: (_rank(one["label"], labels), _rank(one["task"], tasks)))


def _rank(name: str, named: Sequence[str]) -> int:
    return named.index(name) if name in named else len(named)


def summarise(folder: Path, labels: Sequence[str] = (), tasks: Sequence[str] = ()) -> Table:
    """Write ``results.json`` and ``results.md``, and return the table."""
    found = collect(folder, labels, tasks)
    kept = ("task", "model", "label", "metrics", "stderr", "higher_is_better", "documents", "limit")
    rows = [{name: one.get(name) for name in kept} for one in found]
    write_atomically(folder / "results.json", json.dumps({"results": rows}, indent=1, ensure_ascii=False))
    table = table_of(found)
    write_atomically(folder / "results.md", f"{table.caption}\n\n{to_markdown(table)}\n")
    return table


def table_of(found: Sequence[Mapping[str, Any]]) -> Table:
    """The table of every model × every task, each value with half its 95 % interval and its number of documents.

    Differences are to the bare base, if it is among the models.
    """
    labels = list(dict.fromkeys(one["label"] for one in found))
    rows: dict[str, dict[str, Any]] = {label: {"model": label} for label in labels}
    columns: dict[str, Column] = {}
    few = {}
    for one in found:
        count = one.get("documents")
        if count is not None and count < FEW_DOCUMENTS:
            few[one["task"]] = count
        for metric in headline(one):
            column = metric_column(one, metric)
            columns.setdefault(column.key, replace(column, label=f"{column.label}, n = {count}"))
            rows[one["label"]][column.key] = Measured(one["metrics"][metric], _half(one, metric))
    bases = [one["label"] for one in found if one["weights"].get("adapter") is None]
    caption = (
        "n: documents; ±: half of the 95 % interval of a value over documents (Student's t). Losses, entropies and "
        "KL(base ‖ model) in nats per response token."
    )
    if few:
        counts = ", ".join(f"{task} ({count})" for task, count in few.items())
        caption += f" Fewer than {FEW_DOCUMENTS} documents: {counts}; such intervals are rough."
    base = bases[0] if bases and len(labels) > 1 else None
    return Table("Evaluation", caption, tuple(columns.values()), tuple(rows.values()), "model", base)


def _half(one: Mapping[str, Any], metric: str) -> float | None:
    """Student's quantile times the standard error; None if that is unknown or 0."""
    from scipy.stats import t

    error, count = (one.get("stderr") or {}).get(metric), one.get("documents")
    if not count or count < 2 or not isinstance(error, int | float) or not 0 < error < math.inf:
        return None
    return float(t.ppf((1 + LEVEL) / 2, count - 1)) * error
