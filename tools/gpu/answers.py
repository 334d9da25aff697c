"""Exact match of the answers to GSM8K's problems: ``python -m tools.gpu.answers FOLDER``, the end of stage ``answers``.

``FOLDER`` holds what ``uncertune generate --prompts gsm8k`` wrote. The last number of an answer counts, as in lm-eval's
flexible extraction. Writes ``FOLDER/exact-match.csv``, a row a model, with an exact 95 % interval. Answers to IFEval's
prompts come back as they are: ``lm_eval`` scores them on a machine that has it.
"""

from __future__ import annotations

import csv
import json
import re
import sys
from pathlib import Path

from uncertune.data.sources import load
from uncertune.statistics.decided import exact_interval

CSV = "exact-match.csv"
NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?")


def last_number(text: str) -> float | None:
    """The last number of a text, commas left out; None where it has none."""
    found = NUMBER.findall(text)
    return float(found[-1].replace(",", "")) if found else None


def score(folder: Path, expected: dict[str, float | None]) -> list[dict[str, object]]:
    """One row a file of answers; ``expected`` maps a problem to its answer."""
    rows: list[dict[str, object]] = []
    for path in sorted(folder.glob("*.jsonl")):
        lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        right = sum(last_number(one["answer"]) == expected[_question(one)] for one in lines)
        low, high = exact_interval(right, len(lines))
        about = {"contestant": path.stem, "answers": len(lines), "exact_match": round(right / max(1, len(lines)), 4)}
        rows.append(about | {"low": round(low, 4), "high": round(high, 4)})
    return rows


def _question(line: dict) -> str:
    return next(turn["content"] for turn in line["messages"] if turn["role"] == "user")


def main(folder: str, data: str = "gsm8k") -> None:
    problems = [one["messages"] for one in load(data, split="test")]
    expected = {turns[-2]["content"]: last_number(turns[-1]["content"]) for turns in problems}
    rows = score(Path(folder), expected)
    with (Path(folder) / CSV).open("w", newline="") as file:
        writer = csv.DictWriter(file, ["contestant", "answers", "exact_match", "low", "high"])
        writer.writeheader()
        writer.writerows(rows)
    print("\n".join(str(row) for row in rows))


if __name__ == "__main__":
    main(*sys.argv[1:])
