"""Hostile data files in every command that takes data: status 0 or 2, one last line, no traceback, nothing left behind.

The commands run to their end, on a tiny model. What costs seconds is left out: optimizer steps, the figures and page of
scores, and the runs of a sweep.
"""

from __future__ import annotations

import json
import os
import random
import re
import shutil
from collections import Counter

import pytest
import yaml

from helpers import hostile_data
from helpers.hostile_data import ANSWERS, PROMPTS, TRAINED, fresh_seed
from helpers.judging import write_answers
from helpers.tiny import save_tiny
from uncertune.cli import main
from uncertune.scoring import score
from uncertune.sweep import sweep
from uncertune.training import page, pipeline

COUNT = 540
TRAIN = (
    "{command} --model_name_or_path {model} --dataset_name {data} --output_dir {out} --use_cpu --disable_tqdm true "
    "--max_steps 1 --per_device_train_batch_size 1 --report_to none"
)
COMMANDS = {  # command line, the forms of its data, and how often it is drawn
    "check": (TRAIN, TRAINED, 5),
    "train": (TRAIN, TRAINED, 1),
    "score": ("score {data} --model {model} --output_dir {out} --samples 1 --dataset_format {format}", TRAINED, 4),
    "evaluate": ("evaluate {model} --tasks tokens:{data} --output_dir {out} --limit 2", TRAINED, 4),
    "generate": ("generate {model} --prompts {data} --output_dir {out} --max_new_tokens 1", PROMPTS, 4),
    "compare": ("compare {data} {other} --judge {model} --output_dir {out}", ANSWERS, 3),
    "sweep": ("sweep --config {sweep} --dataset_name {data} --output_dir {out}", TRAINED, 1),
}
FORMATS = ("auto", "auto", "auto", "trl", "alpaca", "sharegpt")


@pytest.fixture(scope="module")
def room(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hostile")
    save_tiny(folder / "model", marked=True, max_position_embeddings=8192)
    settings = {"model_name_or_path": str(folder / "model"), "use_cpu": True, "max_steps": 1}
    (folder / "sweep.yaml").write_text(
        yaml.safe_dump({**settings, "sweep": {"held_out": 1, "seeds": 0, "arms": {"objective": "masked_mle"}}})
    )
    return folder


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(pipeline, "_to_the_end", lambda job, trainer, stop: None)
    monkeypatch.setattr(page, "write_run_page", lambda folder: folder)
    monkeypatch.setattr(score, "_write", lambda *given: {})
    monkeypatch.setattr(sweep, "_do", lambda found, runs, jobs: found.folder)
    monkeypatch.setattr(sweep, "is_done", lambda found, run: True)
    for name in ("read_sweep", "gains_table", "to_text"):
        monkeypatch.setattr(sweep, name, lambda given: "")


def means_something(command, out, said):
    """Whether a command that succeeded did so with rows of the data."""
    if command == "check":
        return int(re.search(r"with loss: +([\d,]+)", said)[1].replace(",", "")) > 0
    if command == "evaluate":
        (result,) = (out / "model").glob("*.json")
        return json.loads(result.read_text())["metrics"]["loss"] > 0
    if command == "generate":
        lines = (out / "model.jsonl").read_text().splitlines()
        return len(lines) > 0 and all("answer" in json.loads(line) for line in lines)
    if command == "compare":
        return sum(json.loads((out / "verdicts.json").read_text())["models"]["other"]["outcomes"].values()) > 0
    return {"train": "run.json", "score": "tokens.parquet", "sweep": "config.yaml"}[command] in os.listdir(out)


@pytest.mark.parametrize("seed", [0, pytest.param(None, marks=pytest.mark.slow)], ids=["fixed", "fresh"])
def test_a_hostile_file_is_refused_in_one_line_or_means_something(room, quick, capsys, seed):
    seed = fresh_seed() if seed is None else seed
    draw, seen = random.Random(seed), Counter()
    other = write_answers(room / "other.jsonl", {f"Say 1 and {number}": "a" for number in range(2)})
    fixed = {"model": room / "model", "other": other, "sweep": room / "sweep.yaml", "out": room / "out"}
    names, weights = list(COMMANDS), [weight for _, _, weight in COMMANDS.values()]
    for number in range(COUNT):
        name = draw.choices(names, weights)[0]
        line, forms, _ = COMMANDS[name]
        (room / "data").mkdir()
        path, made = hostile_data.write(room / "data", draw, forms)
        words = line.format(command=name, data=path, format=draw.choice(FORMATS), **fixed).split()
        status = main(words)
        said, err = capsys.readouterr()
        what = f"case {number} of UNCERTUNE_FUZZ_SEED={seed}: {words}\n{made}\n{err[-2000:]}"
        assert status in (0, 2), what
        assert "Traceback" not in err, what
        if status == 2:
            assert err.splitlines()[-1].startswith("uncertune: error: "), what
            assert err.count("uncertune: error: ") == 1, what
            assert all(letter.isprintable() or letter in "\n\r" for letter in err), what
            assert not (room / "out").exists(), what
        else:
            assert means_something(name, room / "out", said), what
        seen[name, status] += 1
        shutil.rmtree(room / "data")
        shutil.rmtree(room / "out", ignore_errors=True)
    print(f"UNCERTUNE_FUZZ_SEED={seed}: {dict(seen)}")
    for name in COMMANDS:
        assert seen[name, 0] > 0, seen
        assert seen[name, 2] > 0, seen
    assert sum(count for (_, status), count in seen.items() if status == 0) > COUNT // 4, seen
