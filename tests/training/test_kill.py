"""SIGKILL at random moments, while the cache is filled and while the model is trained: the same bytes in the end."""

import json
import random
import time

import pytest

from helpers import killable
from helpers.killable import arguments, kill_when, lines, start, steps
from helpers.tiny import save_tiny

PAUSE = 0.02


def words(model, out, **more):
    fields = {"max_train_samples": 24, "save_steps": 2, "teacher_cache": "hidden", **more}
    return arguments(model, out, **fields)[1:]  # without the command


def finish(command, log):
    killable.finish(["train", *command], log, PAUSE)


def shards(out):
    """How many files the manifest names."""
    try:
        return len(json.loads((out / "teacher_cache" / "hidden" / "manifest.json").read_text())["files"])
    except FileNotFoundError:
        return 0


def assert_same(out, whole):
    names = ["adapter_model.safetensors", "stage1/adapter_model.safetensors", "selection.parquet", "probe.jsonl"]
    names += [str(path.relative_to(whole)) for path in (whole / "teacher_cache").glob("*/*.safetensors")]
    assert len(names) > 7
    for name in names:
        assert (out / name).read_bytes() == (whole / name).read_bytes(), name
    assert steps(out) == steps(whole)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("kill")
    save_tiny(folder / "model", marked=True)
    finish(words(folder / "model", folder / "whole"), folder / "log")
    return folder


def test_killed_while_filling_and_while_training(folder):
    out, chance = folder / "killed", random.Random(0)
    command = words(folder / "model", out)
    complete = shards(folder / "whole")
    for due in sorted(chance.sample(range(2, complete - 1), 2)):
        assert kill_when(start(command, str(folder / "log"), PAUSE), lambda due=due: shards(out) >= due)
        assert due <= shards(out) < complete
        assert lines(out / "metrics.jsonl") == 0
    assert kill_when(start(command, str(folder / "log"), PAUSE), lambda: lines(out / "metrics.jsonl") >= 3)
    finish(command, folder / "log")
    assert_same(out, folder / "whole")


def test_documents_cached_as_they_come_survive_a_kill(folder):
    fields = {"teacher_cache_fill": "first_epoch", "num_train_epochs": 2, "teacher": folder / "whole" / "stage1"}
    fields |= {"save_steps": 3}
    plain, out = folder / "plain", folder / "come"
    finish(words(folder / "model", plain, **fields), folder / "log")
    command = words(folder / "model", out, **fields)
    for due in (5, 8):  # in the first epoch and in the second, both after a checkpoint
        assert kill_when(
            start(command, str(folder / "log"), PAUSE), lambda due=due: lines(out / "metrics.jsonl") >= due
        )
    finish(command, folder / "log")
    assert (out / "adapter_model.safetensors").read_bytes() == (plain / "adapter_model.safetensors").read_bytes()
    assert steps(out) == steps(plain)


@pytest.mark.slow
def test_twenty_kills_at_random_moments(folder):
    begun = time.monotonic()
    finish(words(folder / "model", folder / "timed"), folder / "log")  # the first run has also started the server
    seconds = time.monotonic() - begun
    out, chance, kills, moments = folder / "twenty", random.Random(1), 0, []
    command = words(folder / "model", out)
    while kills < 20:
        due = time.monotonic() + chance.uniform(0, seconds)
        process = start(command, str(folder / "log"), PAUSE)
        killed = kill_when(process, lambda due=due: time.monotonic() >= due)
        moments.append((lines(out / "stage1" / "metrics.jsonl"), shards(out), lines(out / "metrics.jsonl")))
        if not killed:  # it was faster: the run is complete; another folder
            assert_same(out, folder / "whole")
            out = folder / f"twenty-{kills}"
            command = words(folder / "model", out)
        kills += killed
    finish(command, folder / "log")
    print("stage 1 steps, shards, stage 2 steps at each kill:", moments)
    assert_same(out, folder / "whole")


def test_two_ranks_share_the_filling(folder):
    out = folder / "ranks"
    command = words(folder / "model", out, teacher=folder / "whole" / "stage1", fill_teacher_cache_only=True)
    ranks = [
        start(
            command,
            str(folder / f"log-{rank}"),
            PAUSE,
            RANK=str(rank),
            LOCAL_RANK=str(rank),
            WORLD_SIZE="2",
            LOCAL_WORLD_SIZE="2",
            MASTER_ADDR="127.0.0.1",
            MASTER_PORT="29653",
            ACCELERATE_USE_CPU="true",
        )
        for rank in range(2)
    ]
    for one in ranks:
        one.join()
    assert [one.exitcode for one in ranks] == [0, 0], (folder / "log-0").read_text()[-3000:]
    cached = {path.name: path.read_bytes() for path in (out / "teacher_cache" / "hidden").glob("*.safetensors")}
    alone = (folder / "whole" / "teacher_cache" / "hidden").glob("*.safetensors")
    assert cached == {path.name: path.read_bytes() for path in alone}
    assert not (out / "run.json").exists()
