"""SIGKILL at random moments of six kinds of run: the same weights, masks, probes and metrics in the end."""

import json
import random
import shutil

import pytest

from helpers import killable
from helpers.harness import rows
from helpers.hostile_data import fresh_seed
from helpers.killable import arguments, kill_when, lines, start, summaries
from helpers.tiny import save_tiny

PAUSE = 0.02  # seconds between batches while the teacher's cache is filled
ROUNDS, KILLS = 17, 3  # kills of each kind in the slow test, 102 in all, and at most of one run
COMMON = {
    "max_train_samples": 24,
    "max_length": 320,
    "num_train_epochs": 1,
    "save_steps": 2,
    "logging_steps": 4,  # means of the log span a kill
}
KINDS = {
    "mle": {  # the whole model, packed, the best checkpoint in the end
        "objective": "mle",
        "teacher": None,
        "use_peft": None,
        "lora_target_modules": None,
        "lora_dropout": None,
        "packing": True,
        "max_length": 640,
        "max_train_samples": 48,
        "eval_strategy": "steps",
        "eval_steps": 2,
        "max_eval_samples": 4,
        "load_best_model_at_end": True,
        "save_total_limit": 2,
    },
    "masked_mle": {"objective": "masked_mle", "teacher": None, "probe_samples": 2},
    "running": {  # a threshold that earlier steps left, and rows from a stream
        "objective": "masked_mle",
        "teacher": None,
        "selection_scope": "running",
        "token_weighting": "eaft",
        "dataset_streaming": True,
        "num_train_epochs": None,
        "max_steps": 6,
    },
    "two_stages": {"teacher_cache": "hidden"},
    "first_epoch": {  # documents are cached as they come
        "objective": "distill",
        "teacher": "{folder}/teacher",
        "teacher_cache": "hidden",
        "teacher_cache_fill": "first_epoch",
        "anchor": "base",
        "num_train_epochs": 2,
        "max_train_samples": 12,
    },
    "policy_gradient": {  # side columns, and mixed precision
        "objective": "policy_gradient",
        "teacher": None,
        "dataset_name": "{folder}/sampled.jsonl",
        "max_train_samples": None,
        "bf16": True,
    },
}


def words(folder, out, **fields):
    """Of a command, without its name."""
    fields = {**COMMON, **fields}
    given = {name: value.format(folder=folder) if isinstance(value, str) else value for name, value in fields.items()}
    return arguments(folder / "model", folder / out, **given)[1:]


def finish(command, folder):
    killable.finish(["train", *command], folder / "log", PAUSE)


def begun(command, folder):
    return start(command, str(folder / "log"), PAUSE)


def shards(out):
    """How many files the manifest of the cache names."""
    try:
        return len(json.loads((out / "teacher_cache" / "hidden" / "manifest.json").read_text())["files"])
    except FileNotFoundError:
        return 0


def progress(out):
    """Steps and cached files so far, of all stages."""
    return lines(out / "stage1" / "metrics.jsonl") + shards(out) + lines(out / "metrics.jsonl")


def assert_same(out, whole):
    kept = [path for pattern in ("*.safetensors", "*.parquet", "probe.jsonl") for path in whole.rglob(pattern)]
    names = {str(path.relative_to(whole)) for path in kept}
    assert {"probe.jsonl"} < names
    assert lines(whole / "metrics.jsonl") == 6
    assert {str(path.relative_to(out)) for path in out.rglob("*.safetensors")} <= names
    for name in names:
        assert (out / name).read_bytes() == (whole / name).read_bytes(), name
    for stage in (".", "stage1"):
        if (whole / stage / "metrics.jsonl").is_file():
            assert summaries(out / stage) == summaries(whole / stage)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model, rows with side columns, and a run of two stages that nothing disturbed; its stage 1 is a teacher."""
    folder = tmp_path_factory.mktemp("kill")
    save_tiny(folder / "model", marked=True, max_position_embeddings=1024)
    sampled = [{**row, "advantages": (-1.0) ** n * (1 + n)} for n, row in enumerate(rows(24))]
    (folder / "sampled.jsonl").write_text("".join(json.dumps(row) + "\n" for row in sampled))
    finish(words(folder, "two_stages", **KINDS["two_stages"]), folder)
    shutil.copytree(folder / "two_stages" / "stage1", folder / "teacher")
    return folder


def undisturbed(folder, kind):
    """A run of this kind that nothing disturbed."""
    if not (folder / kind).is_dir():
        finish(words(folder, kind, **KINDS[kind]), folder)
    return folder / kind


@pytest.mark.parametrize("kind", KINDS)
def test_killed_and_resumed_it_ends_with_the_same_numbers(folder, kind):
    whole, out = undisturbed(folder, kind), folder / f"{kind}-killed"
    due = random.Random(kind).randint(3, progress(whole) - 1)
    command = words(folder, out.name, **KINDS[kind])
    assert kill_when(begun(command, folder), lambda: progress(out) >= due), (folder / "log").read_text()[-3000:]
    finish(command, folder)
    assert_same(out, whole)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_killed_at_random_moments(folder, kind):
    """Up to half a second after a step or a shard that is drawn: in a step, in a save, or in what begins a run."""
    seed = fresh_seed()
    whole, chance = undisturbed(folder, kind), random.Random(f"{seed} {kind}")
    moments, runs = [], 0
    while len(moments) < ROUNDS:
        out, runs = folder / f"{kind}-{runs}", runs + 1
        command = words(folder, out.name, **KINDS[kind])
        for due in sorted(chance.sample(range(1, progress(whole) + 1), KILLS)):
            if not kill_when(
                begun(command, folder), lambda due=due, out=out: progress(out) >= due, chance.random() / 2
            ):
                break  # it was faster, and is complete
            moments.append(progress(out))
        finish(command, folder)
        assert_same(out, whole)
    print(f"{kind}, UNCERTUNE_FUZZ_SEED={seed}: {len(moments)} kills of {runs} runs, after these steps: {moments}")


def test_killed_while_filling(folder):
    out, whole = folder / "filling", folder / "two_stages"
    fields = {**KINDS["two_stages"], "teacher": "{folder}/teacher"}
    command = words(folder, out.name, **fields)
    for due in sorted(random.Random(0).sample(range(2, shards(whole) - 1), 2)):
        assert kill_when(begun(command, folder), lambda due=due: shards(out) >= due)
        assert due <= shards(out) < shards(whole)
        assert lines(out / "metrics.jsonl") == 0
    finish(command, folder)
    for path in (whole / "teacher_cache").rglob("*.safetensors"):
        assert (out / path.relative_to(whole)).read_bytes() == path.read_bytes()


def test_two_ranks_share_the_filling(folder):
    out = folder / "ranks"
    fields = {**KINDS["two_stages"], "teacher": "{folder}/teacher", "fill_teacher_cache_only": True}
    ranks = [
        start(
            words(folder, out.name, **fields),
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
    alone = (folder / "two_stages" / "teacher_cache" / "hidden").glob("*.safetensors")
    assert cached == {path.name: path.read_bytes() for path in alone}
    assert not (out / "run.json").exists()
