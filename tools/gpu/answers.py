"""Scores of the generated answers, the results of stage ``answers``.

A folder holds what ``uncertune generate --prompts DATA`` wrote, a folder a model. The machine with the GPU need have
neither the data's answers nor lm-eval, so answers come back unscored, and ``tools.gpu.tables`` scores them: of GSM8K
and word problems the last number counts, as in lm-eval's flexible extraction; IFEval's instructions are checked by
lm-eval. Every share has an exact 95 % interval.

    python -m tools.gpu.answers FOLDER/gsm8k

scores one folder of such answers.
"""

from __future__ import annotations

import csv
import itertools
import random
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from uncertune.data.files import read_rows
from uncertune.data.sources import load
from uncertune.errors import UserError
from uncertune.evaluation.harness import load_task
from uncertune.report.drawing import draw_sections
from uncertune.report.page import Bar, Bars
from uncertune.statistics.decided import exact_interval
from uncertune.statistics.intervals import over_seeds
from uncertune.statistics.paired import compare

CSV, DIFFERENCES, FIGURE, IFEVAL = "scores.csv", "differences.csv", "right", "ifeval"
UNSCORED = ("alpaca_eval",)
"""Answers that a judge compares (``uncertune compare``)."""
BASE, MLE = "base", "mle"
OTHERWISE = {"mixed": "alpaca", "stopped": "alpaca"}
"""Trained with other rows mixed in, or stopped early, and the same data without that."""
HEADINGS = {"mixed": "alpaca + own answers", "stopped": "alpaca, stopped early"}
RUN = re.compile(r"(?P<data>[^-]+)-(?P<arm>.+)-s(?P<seed>\d+)")
Rows = list[dict[str, object]]
Lines = list[dict]
Marks = dict[str, list[bool]]
"""Whether each answer of a model is right."""
NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?")


def last_number(text: str) -> float | None:
    """The last number of a text, commas left out; None where it has none."""
    found = NUMBER.findall(text)
    return float(found[-1].replace(",", "")) if found else None


def solutions(data: str, split: str, data_dir: str | None = None) -> dict[str, float | None]:
    """The answer to each problem of a data set."""
    problems = [one["messages"] for one in load(data, split=split, data_dir=data_dir)]
    return {turns[-2]["content"]: last_number(turns[-1]["content"]) for turns in problems}


def score(folder: Path, expected: dict[str, float | None]) -> tuple[Rows, Marks]:
    """A row a file of answers, and whether each answer is right; ``expected`` maps a problem to its answer."""
    rows, marks = [], {}
    for name, lines in _answers(folder):
        row, marks[name] = score_file(name, lines, expected)
        rows.append(row)
    return rows, marks


def score_file(name: str, lines: Lines, expected: dict[str, float | None]) -> tuple[dict[str, object], list[bool]]:
    """The same of the lines of one file."""
    right = [last_number(one["answer"]) == expected[_question(one)] for one in lines]
    return _row(name, "exact_match", right, lines), right


def follow(folder: Path, data_dir: str | None = None) -> tuple[Rows, Marks]:
    """A row a file of answers to IFEval's prompts, and whether all instructions of each prompt are followed: by
    lm-eval's strict reading, and in the row by its loose one too. Raises UserError without lm-eval."""
    (task,) = load_task("ifeval", data_dir).loaded["tasks"].values()
    asked = {one["prompt"]: one for one in task.test_docs()}
    rows, marks = [], {}
    for name, lines in _answers(folder):
        found = []
        for one in lines:
            random.seed(0)  # lm-eval asks for a random letter in place of one that is none, such as "#"
            found.append(task.process_results(asked[_question(one)], [one["answer"]]))
        marks[name] = [bool(one["prompt_level_strict_acc"]) for one in found]
        loose = sum(one["prompt_level_loose_acc"] for one in found) / max(1, len(found))
        rows.append(_row(name, "strict", marks[name], lines) | {"loose": round(loose, 4)})
    return rows, marks


def _row(name: str, of: str, marks: list[bool], lines: Lines) -> dict[str, object]:
    """The share of right answers, with an exact interval, and the median length of an answer in characters."""
    low, high = exact_interval(sum(marks), len(marks))
    share = round(sum(marks) / max(1, len(marks)), 4)
    length = float(np.median([len(one["answer"]) for one in lines])) if lines else 0.0
    shown = {of: share, "low": round(low, 4), "high": round(high, 4)}
    return {"contestant": name, "answers": len(marks), **shown, "characters": length}


def differences(marks: Marks) -> Rows:
    """What training changed (``MLE - base``), each arm less MLE, and what mixing rows into the data changed.

    Runs are named ``DATA-ARM-sSEED``. The first interval is over the problems, each with its mean over the seeds; the
    second over the seeds alone.
    """
    runs, rows = _by_arm(marks), []
    for (data, arm), ours in runs.items():
        others = {MLE: runs.get((data, MLE), {})} if arm != MLE else {}
        if arm == MLE and BASE in marks:
            others[BASE] = dict.fromkeys(ours, marks[BASE])
        if arm == MLE and data in OTHERWISE:
            others[f"{OTHERWISE[data]}-{MLE}"] = runs.get((OTHERWISE[data], MLE), {})
        rows += [row for less, theirs in others.items() if (row := _difference(data, arm, less, ours, theirs))]
    return rows


def _by_arm(marks: Marks) -> dict[tuple[str, str], dict[str, list[bool]]]:
    """The seeds of each data set and arm, MLE first, of runs with names of a sweep."""
    found: dict[tuple[str, str], dict[str, list[bool]]] = {}
    for name, right in marks.items():
        if run := RUN.fullmatch(name):
            found.setdefault((run["data"], run["arm"]), {})[run["seed"]] = right
    return {(data, arm): found[data, arm] for data, arm in sorted(found, key=lambda of: (of[0], of[1] != MLE, of[1]))}


def _difference(
    data: str, arm: str, less: str, ours: dict[str, list[bool]], theirs: dict[str, list[bool]]
) -> dict[str, object] | None:
    """The difference over the seeds that both have; None where there is none."""
    both = [seed for seed in sorted(ours.keys() & theirs.keys()) if len(ours[seed]) == len(theirs[seed])]
    if not both:
        return None
    mine, other = (np.mean([one[seed] for seed in both], axis=0) for one in (ours, theirs))
    found = compare(mine, other, np.ones(len(mine))).difference
    by_seed = [float(np.mean(ours[seed]) - np.mean(theirs[seed])) for seed in both]
    over = over_seeds(by_seed)
    return (
        {"trained_on": data, "arm": arm, "seeds": len(both), "answers": len(mine), "right": _points(float(mine.mean()))}
        | {"less": less, "points": _points(found.value), "low": _points(found.low), "high": _points(found.high)}
        | {"low_of_seeds": _points(over.low), "high_of_seeds": _points(over.high)}
        | {"by_seed": " ".join(f"{one:+.1f}" for one in np.multiply(by_seed, 100))}
    )


def figure(marks: Marks, title: str) -> Bars:
    """Shares of right answers: of the untrained model, and of every arm over its seeds."""
    groups = [("", (_bar("untrained", [marks[BASE]]),))] if BASE in marks else []
    for data, runs in itertools.groupby(_by_arm(marks).items(), key=lambda run: run[0][0]):
        bars = tuple(_bar(arm, list(seeds.values())) for (_, arm), seeds in runs)
        groups.append((f"trained on {HEADINGS.get(data, data)}", bars))
    caption = "Means over seeds, with 95 % intervals over the problems."
    return Bars(title, caption, "right answers, %", tuple(groups), percent=False)


def _bar(name: str, runs: list[list[bool]]) -> Bar:
    """The mean over problems of the share of seeds that are right."""
    return Bar(name, over_seeds(100 * np.mean(runs, axis=0)))


def _points(share: float) -> float:
    return round(100 * share, 1)


def _answers(folder: Path) -> Iterator[tuple[str, Lines]]:
    """Every model's name and answers; what was not finished is left out."""
    for path in sorted(folder.rglob("*.jsonl")):
        if path.stem.endswith(".partial"):
            continue
        yield path.stem, list(read_rows(path))


def _question(line: dict) -> str:
    return next(turn["content"] for turn in line["messages"] if turn["role"] == "user")


def write(folder: Path, data_dir: str | None = None) -> None:
    """Score the answers of a folder, which has the name of the data, as ``FOLDER/scores.csv``, and the differences of
    runs with names of a sweep as ``FOLDER/differences.csv``, with a figure."""
    if folder.name == IFEVAL:
        rows, marks = follow(folder, data_dir)
    else:
        rows, marks = score(folder, solutions(folder.name, "test", data_dir))
    save(rows, folder / CSV)
    if apart := differences(marks):
        save(apart, folder / DIFFERENCES)
        draw_sections(folder / FIGURE, [figure(marks, f"Right answers, {folder.name}")])


def save(rows: Rows, path: Path) -> None:
    """A table as CSV; of no rows the name of its first column."""
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]) if rows else ["contestant"])
        writer.writeheader()
        writer.writerows(rows)


if __name__ == "__main__":
    try:
        write(Path(sys.argv[1]))
    except UserError as error:
        sys.exit(str(error))
