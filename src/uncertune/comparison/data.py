"""What ``uncertune compare`` left in a folder: results with their samples, answers, judgements and verdicts.

Any of them may be absent. Raises UserError, one line, for a file that is there and cannot be read.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from uncertune.data.files import first_line
from uncertune.errors import UserError

Record = dict[str, Any]


@dataclass(frozen=True)
class Comparison:
    """``results`` by task, then model; ``answers`` and ``judgements`` by model, lines in their order."""

    results: Mapping[str, Mapping[str, Record]]
    samples: Mapping[tuple[str, str], list[Record]]
    answers: Mapping[str, list[Record]] = field(default_factory=dict)
    judgements: Mapping[str, list[Record]] = field(default_factory=dict)
    verdicts: Record = field(default_factory=dict)

    @property
    def models(self) -> list[str]:
        """Every label, in the order of the results, then of the verdicts and the answers."""
        found = [label for by_model in self.results.values() for label in by_model]
        return list(dict.fromkeys([*found, *self.verdicts.get("models", {}), *self.answers]))


def read_comparison(folder: Path) -> Comparison:
    """Everything that is there. Raises UserError where there is nothing to compare."""
    results, samples = _results(folder / "evaluation")
    answers = {path.stem: list(_lines(path, ("id", "messages", "answer"))) for path in _files(folder / "answers")}
    judgements = {path.stem: list(_lines(path, ("id", "order", "outcome"))) for path in _files(folder / "judgements")}
    verdicts = read_object(folder / "verdicts.json") if (folder / "verdicts.json").is_file() else {}
    found = Comparison(results, samples, answers, judgements, verdicts)
    if not found.models:
        raise UserError(
            f"output_dir {str(folder)!r} has nothing to compare: neither evaluation, nor answers, nor verdicts.json"
        )
    return found


def _results(folder: Path) -> tuple[dict[str, dict[str, Record]], dict[tuple[str, str], list[Record]]]:
    """The result files, ordered as ``results.json`` lists them, others behind."""
    found: dict[tuple[str, str], tuple[Path, Record]] = {}
    for path in sorted(folder.glob("*/*.json")):
        one = read_object(path)
        if all(name in one for name in ("task", "label", "metrics")) and one["label"] == path.parent.name:
            found[one["task"], one["label"]] = path, one
    listed = read_object(folder / "results.json").get("results", []) if (folder / "results.json").is_file() else []
    order = [(one.get("task"), one.get("label")) for one in listed]
    results: dict[str, dict[str, Record]] = {}
    samples: dict[tuple[str, str], list[Record]] = {}
    labels = list(dict.fromkeys([*(label for _, label in order), *(label for _, label in found)]))
    for task in dict.fromkeys([*(task for task, _ in order), *(task for task, _ in found)]):
        for label in labels:
            if (task, label) not in found:
                continue
            path, one = found[task, label]
            results.setdefault(task, {})[label] = one
            lines = path.with_suffix(".samples.jsonl")
            if lines.is_file():
                samples[task, label] = list(_lines(lines, ("doc_id", "scores")))
    return results, samples


def _files(folder: Path) -> list[Path]:
    return [path for path in sorted(folder.glob("*.jsonl")) if not path.name.endswith(".partial.jsonl")]


def read_object(path: Path) -> Record:
    """A file of one JSON object. Raises UserError for anything else."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(
            f"{str(path)!r} is damaged ({first_line(error)}): delete it and run the command again"
        ) from error
    if not isinstance(found, dict):
        raise UserError(f"{str(path)!r} is damaged (not a JSON object): delete it and run the command again")
    return found


def _lines(path: Path, needed: Sequence[str]) -> Iterator[Record]:
    # splitlines would also split at the line separators that an answer may hold
    for number, line in enumerate(path.read_bytes().split(b"\n"), start=1):
        if not line.strip():
            continue
        try:
            found = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise UserError(f"{str(path)!r} is damaged in line {number} ({first_line(error)}): delete it") from error
        lacking = [name for name in needed if not isinstance(found, dict) or name not in found]
        if lacking:
            raise UserError(f"{str(path)!r} is damaged in line {number} (without {lacking[0]!r}): delete it")
        yield found
