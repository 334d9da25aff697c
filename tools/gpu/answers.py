"""Scores of the generated answers, the results of stage ``answers``.

A folder holds what ``uncertune generate --prompts DATA`` wrote, a folder a model. The machine with the GPU need have
neither the data's answers nor lm-eval, so answers come back unscored, and ``tools.gpu.tables`` scores them: of GSM8K
and word problems the last number counts, as in lm-eval's flexible extraction; IFEval's instructions are checked by
lm-eval. Every share has an exact 95 % interval.
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterator
from pathlib import Path

from uncertune.data.sources import load
from uncertune.evaluation.harness import load_task
from uncertune.statistics.decided import exact_interval

CSV, IFEVAL = "scores.csv", "ifeval"
NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?")


def last_number(text: str) -> float | None:
    """The last number of a text, commas left out; None where it has none."""
    found = NUMBER.findall(text)
    return float(found[-1].replace(",", "")) if found else None


def score(folder: Path, expected: dict[str, float | None]) -> list[dict[str, object]]:
    """One row a file of answers; ``expected`` maps a problem to its answer."""
    rows: list[dict[str, object]] = []
    for name, lines in _answers(folder):
        right = sum(last_number(one["answer"]) == expected[_question(one)] for one in lines)
        low, high = exact_interval(right, len(lines))
        about = {"contestant": name, "answers": len(lines), "exact_match": round(right / max(1, len(lines)), 4)}
        rows.append(about | {"low": round(low, 4), "high": round(high, 4)})
    return rows


def follow(folder: Path, data_dir: str | None = None) -> list[dict[str, object]]:
    """One row a file of answers to IFEval's prompts: the share of prompts all of whose instructions are followed, by
    lm-eval's strict and loose reading, with the strict one's exact 95 % interval. Raises UserError without lm-eval."""
    (task,) = load_task("ifeval", data_dir).loaded["tasks"].values()
    asked = {one["prompt"]: one for one in task.test_docs()}
    rows: list[dict[str, object]] = []
    for name, lines in _answers(folder):
        found = [task.process_results(asked[_question(one)], [one["answer"]]) for one in lines]
        strict, loose = (sum(one[f"prompt_level_{how}_acc"] for one in found) for how in ("strict", "loose"))
        low, high = exact_interval(int(strict), len(lines))
        shares = {"strict": strict / len(lines), "low": low, "high": high, "loose": loose / len(lines)}
        rows.append(
            {"contestant": name, "answers": len(lines)} | {key: round(share, 4) for key, share in shares.items()}
        )
    return rows


def _answers(folder: Path) -> Iterator[tuple[str, list[dict]]]:
    """Every model's name and answers; what was not finished is left out."""
    for path in sorted(folder.rglob("*.jsonl")):
        if path.stem.endswith(".partial"):
            continue
        yield path.stem, [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def _question(line: dict) -> str:
    return next(turn["content"] for turn in line["messages"] if turn["role"] == "user")


def write(folder: Path, data_dir: str | None = None) -> None:
    """Score the answers of a folder, which has the name of the data, as ``FOLDER/scores.csv``."""
    if folder.name == IFEVAL:
        rows = follow(folder, data_dir)
    else:
        problems = [one["messages"] for one in load(folder.name, split="test", data_dir=data_dir)]
        rows = score(folder, {turns[-2]["content"]: last_number(turns[-1]["content"]) for turns in problems})
    with (folder / CSV).open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]) if rows else ["contestant"])
        writer.writeheader()
        writer.writerows(rows)
