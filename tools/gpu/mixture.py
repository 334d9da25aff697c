r"""Alpaca with a model's own answers to problems of GSM8K mixed in: the data of ``evidence/student_mixed.yaml``.

    uncertune generate qwen.gguf --labels own --prompts gsm8k --dataset_split train \
        --limit 120 --max_new_tokens 400 --output_dir own
    python -m tools.gpu.mixture own/own.jsonl --output_dir mixed

writes ``mixed/s0/alpaca_with_own.jsonl`` to ``s2``. Each has the 256 rows that ``evidence/student_alpaca.yaml`` draws
with that seed, 64 answers that ended by themselves, right or wrong, and last the rows that sweeps of Alpaca hold out.
``mixed/own/scores.csv`` says how many of the answers are right.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

ROWS, OWN, HELD_OUT = 256, 64, 64
SEEDS = (0, 1, 2)


def name(seed: int) -> str:
    """The file of a seed, the same but for its folder, so that the sweeps of all seeds are of one data set."""
    return f"s{seed}/alpaca_with_own.jsonl"


def mixed(rows: Any, answers: Any, seed: int) -> Iterator[dict[str, object]]:
    """The rows of one seed, those that are held out last. Raises ValueError for too few own answers."""
    last, draw = len(rows) - HELD_OUT, random.Random(seed)
    yield from rows.select(sorted(draw.sample(range(last), ROWS)))
    yield from answers.select(draw.sample(range(len(answers)), OWN))
    yield from rows.select(range(last, len(rows)))


def score(own: Path, out: Path, data_dir: str | None = None) -> None:
    """Write how many of the answers are right."""
    from tools.gpu import answers
    from uncertune.data.files import read_rows

    row, _ = answers.score_file(own.stem, list(read_rows(own)), answers.solutions("gsm8k", "train", data_dir))
    out.mkdir(parents=True, exist_ok=True)
    answers.save([row], out / answers.CSV)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m tools.gpu.mixture", description=__doc__.split("\n")[0])
    parser.add_argument("own", type=Path, help="what uncertune generate wrote")
    parser.add_argument("--data_dir", help="folder of Alpaca; without it from $UNCERTUNE_DATA, or the hub")
    parser.add_argument("--output_dir", type=Path, default=Path("mixed"))
    args = parser.parse_args(argv)

    from uncertune.data.sources import load

    rows, answers = load("alpaca", data_dir=args.data_dir), load(str(args.own))
    for seed in SEEDS:
        lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in mixed(rows, answers, seed)]
        path = args.output_dir / name(seed)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(lines), encoding="utf-8")
    score(args.own, args.output_dir / "own", args.data_dir)


if __name__ == "__main__":
    from uncertune.errors import UserError

    try:
        main()
    except UserError as error:
        sys.exit(str(error))
