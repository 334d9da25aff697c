"""The files of ``uncertune compare``: results with their samples, answers, judgements and verdicts.

Any of them may be absent. A file that cannot be read raises UserError.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
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
    """All files of a folder. Raises UserError if there is nothing to compare."""
    results, samples = _results(folder / "evaluation")
    answers = {path.stem: list(_lines(path, _ANSWER)) for path in _files(folder / "answers")}
    judgements = {path.stem: list(_lines(path, _JUDGEMENT)) for path in _files(folder / "judgements")}
    verdicts = _verdicts(folder / "verdicts.json") if (folder / "verdicts.json").is_file() else {}
    found = Comparison(results, samples, answers, judgements, verdicts)
    if not found.models:
        raise UserError(
            f"output_dir {str(folder)!r} has nothing to compare: neither evaluation, nor answers, nor verdicts.json"
        )
    return found


def _results(folder: Path) -> tuple[dict[str, dict[str, Record]], dict[tuple[str, str], list[Record]]]:
    """The result files, in the order of ``results.json``, then the others."""
    found: dict[tuple[str, str], tuple[Path, Record]] = {}
    for path in sorted(folder.glob("*/*.json")):
        one = read_object(path)
        if all(name in one for name in ("task", "label", "metrics")) and one["label"] == path.parent.name:
            _check(path, one, _RESULT)
            found[one["task"], one["label"]] = path, one
    order: list[tuple[Any, Any]] = []
    if (folder / "results.json").is_file():
        listed = read_object(folder / "results.json")
        _check(folder / "results.json", listed, {"results": list})
        order = [(one.get("task"), one.get("label")) for one in listed["results"] if isinstance(one, dict)]
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
                samples[task, label] = list(_lines(lines, _SAMPLE))
    return results, samples


def _files(folder: Path) -> list[Path]:
    return [path for path in sorted(folder.glob("*.jsonl")) if not path.name.endswith(".partial.jsonl")]


def read_object(path: Path) -> Record:
    """A file of one JSON object. Raises UserError for anything else."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise _damaged(path, first_line(error)) from error
    if not isinstance(found, dict):
        raise _damaged(path, "not a JSON object")
    return found


def _verdicts(path: Path) -> Record:
    found = read_object(path)
    optional = {"baseline": str, "judge": str, "in_distribution": list}
    _check(path, found, {"models": dict, **{name: kind for name, kind in optional.items() if name in found}})
    for verdict in found["models"].values():
        if not isinstance(verdict, dict):
            raise _damaged(path, "a model's entry is not an object")
        _check(path, verdict, {"outcomes": dict})
        rates = [one for name, one in verdict.items() if name not in ("outcomes", "decided")]
        if any(isinstance(one, dict) and not all(_is_number(end) for end in one.values()) for one in rates):
            raise _damaged(path, "a rate is not a number")
        if not isinstance(verdict.get("decided"), dict | None):
            raise _damaged(path, "'decided' is not an object")
    return found


def _lines(path: Path, needed: Mapping[str, type]) -> Iterator[Record]:
    # splitlines would also split at other line separators inside an answer
    for number, line in enumerate(path.read_bytes().split(b"\n"), start=1):
        if not line.strip():
            continue
        try:
            found = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise _damaged(path, first_line(error), f" in line {number}") from error
        if not isinstance(found, dict):
            raise _damaged(path, "not an object", f" in line {number}")
        _check(path, found, needed, f" in line {number}")
        if "messages" in needed and not all(
            isinstance(turn, dict) and isinstance(turn.get("role"), str) for turn in found["messages"]
        ):
            raise _damaged(path, "'messages' are not turns", f" in line {number}")
        yield found


_RESULT: Mapping[str, type] = {"task": str, "label": str, "metrics": dict}
_SAMPLE: Mapping[str, type] = {"doc_id": object, "scores": dict}
_ANSWER: Mapping[str, type] = {"id": str, "messages": list, "answer": str}
_JUDGEMENT: Mapping[str, type] = {"id": str, "order": str, "outcome": str}
"""The fields that a record needs, and their types."""


def _check(path: Path, found: Record, needed: Mapping[str, type], where: str = "") -> None:
    for name, kind in needed.items():
        if name not in found:
            raise _damaged(path, f"without {name!r}", where)
        if not isinstance(found[name], kind):
            raise _damaged(path, f"{name!r} is {type(found[name]).__name__}", where)
    for name in ("metrics", "scores"):
        if name in needed and not all(_is_number(value) for value in found[name].values()):
            raise _damaged(path, f"{name!r} holds a value that is not a number", where)
    for name in ("stderr", "higher_is_better"):
        if name in found and not isinstance(found[name], dict | None):
            raise _damaged(path, f"{name!r} is {type(found[name]).__name__}", where)


def _is_number(value: Any) -> bool:
    return value is None or isinstance(value, int | float)


def _damaged(path: Path, why: str, where: str = "") -> UserError:
    return UserError(f"{str(path)!r} is damaged{where} ({why}): delete it and run the command again")
