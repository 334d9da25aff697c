"""A signal, a full disk, a loss that is no number: the run ends in one line and goes on from what it kept."""

import errno
import os
import resource
import shlex
import shutil
import signal

import pytest
import torch

from helpers.killable import arguments, steps, summaries
from helpers.tiny import save_tiny
from uncertune.cli.main import _again, main
from uncertune.errors import InterruptedRun
from uncertune.runs.checkpoints import MARKER
from uncertune.training.interruptions import Stop, disk_error, explained
from uncertune.training.trainer import UncertuneTrainer

RUN = {
    "objective": "masked_mle",
    "teacher": None,
    "selection_scope": "running",
    "max_train_samples": 24,
    "save_steps": 2,
    "save_total_limit": 1,
}


def words(folder, out, **more):
    return arguments(folder / "model", folder / out, **{**RUN, **more})


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run of 6 steps that nothing disturbed; its last checkpoint alone is kept."""
    folder = tmp_path_factory.mktemp("work")
    save_tiny(folder / "model", marked=True)
    assert main(words(folder, "whole")) == 0
    assert [row["step"] for row in steps(folder / "whole")] == [1, 2, 3, 4, 5, 6]
    return folder


def same(folder, out):
    for name in ("adapter_model.safetensors", "selection.parquet"):
        assert (folder / out / name).read_bytes() == (folder / "whole" / name).read_bytes(), name
    assert steps(folder / out) == steps(folder / "whole")
    assert [path.name for path in (folder / out).glob("checkpoint-*")] == ["checkpoint-6"]


def at_step(monkeypatch, step, act):
    """Run ``act(trainer)`` in the forward of a step, once; steps count from 1."""
    right, done = UncertuneTrainer._training_loss, []

    def watched(self, *args):
        if self.state.global_step + 1 == step and not done:
            done.append(True)
            act(self)
        return right(self, *args)

    monkeypatch.setattr(UncertuneTrainer, "_training_loss", watched)


# ---- signals


@pytest.fixture(autouse=True)
def _interruptible():
    """A shell starts what runs in its background with SIGINT ignored, and what is ignored stays so."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_finishes_the_step_and_says_how_to_go_on(whole, monkeypatch, capfd, number):
    out = f"stopped-{number}"
    before = signal.getsignal(number)
    at_step(monkeypatch, 3, lambda _: os.kill(os.getpid(), number))
    assert main([*words(whole, out), "--overwrite"]) == 128 + number
    said = capfd.readouterr().err.strip().splitlines()
    assert f"{number.name}: finishing this step" in " ".join(said)
    assert said[-2].endswith(
        f"stopped by {number.name} after step 3 of 6, saved in {whole / out}/checkpoint-3; resume with:"
    )
    assert (whole / out / "checkpoint-3" / MARKER).is_file()
    assert signal.getsignal(number) == before
    command = shlex.split(said[-1])
    assert command[0] == "uncertune"
    assert main(command[1:]) == 0
    same(whole, out)


def test_a_second_signal_ends_at_once(whole, monkeypatch, capfd):
    def twice(_):
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)

    at_step(monkeypatch, 4, twice)
    assert main(words(whole, "twice")) == 130
    assert "ended at once by SIGINT" in capfd.readouterr().err
    assert (whole / "twice" / "checkpoint-2" / MARKER).is_file()
    assert not (whole / "twice" / "checkpoint-3").exists()
    monkeypatch.undo()
    assert main(words(whole, "twice")) == 0
    same(whole, "twice")


def test_a_signal_between_stages_or_before_training():
    stop = Stop()
    with stop.listening(), pytest.raises(InterruptedRun, match="SIGTERM"):
        os.kill(os.getpid(), signal.SIGTERM)  # nothing is under way yet
    stop.check_between("stage 1, which is complete")
    stop.signal = signal.SIGTERM
    with pytest.raises(InterruptedRun, match="SIGTERM after stage 1, which is complete"):
        stop.check_between("stage 1, which is complete")


def test_the_command_to_go_on_never_overwrites(tmp_path):
    assert _again(["train", "--overwrite", "--seed", "1"]) == "uncertune train --seed 1"
    assert _again(["train", "--overwrite", "true", "--seed", "1"]) == "uncertune train --seed 1"
    assert _again(["train", "--overwrite=true", "a b"]) == "uncertune train 'a b'"
    assert _again(["demo", "--overwrite"]) == "uncertune demo"
    file = tmp_path / "run.yaml"
    file.write_text("seed: 1\noverwrite: true\n")
    assert _again(["train", "--config", str(file)]) == f"uncertune train --config {file} --overwrite false"


def stopped_at(folder, out, step, monkeypatch):
    """A run that a signal ended after ``step``; its last two checkpoints are kept."""
    at_step(monkeypatch, step, lambda _: os.kill(os.getpid(), signal.SIGTERM))
    assert main(words(folder, out, save_total_limit=2, logging_steps=4)) == 128 + signal.SIGTERM
    monkeypatch.undo()


def test_damage_is_found_and_the_checkpoint_before_is_used(whole, monkeypatch, capfd):
    """Also the summaries, whose means span the interruption, are those of a run without one."""
    assert main(words(whole, "calm", save_total_limit=2, logging_steps=4)) == 0
    stopped_at(whole, "damaged", 5, monkeypatch)
    out = whole / "damaged"
    weights = out / "checkpoint-5" / "adapter_model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    capfd.readouterr()
    assert main(words(whole, "damaged", save_total_limit=2, logging_steps=4)) == 0
    said = capfd.readouterr().err
    assert f"skipping {out / 'checkpoint-5'}: adapter_model.safetensors was changed or cut short" in said
    assert f"resuming at step 4 from {out / 'checkpoint-4'}" in said
    for name in ("adapter_model.safetensors", "selection.parquet", "probe.jsonl"):
        assert (out / name).read_bytes() == (whole / "calm" / name).read_bytes(), name
    assert summaries(out) == summaries(whole / "calm")
    assert [row for row in summaries(out) if "train_loss" in row]


def test_nothing_resumes_where_all_checkpoints_or_records_are_damaged(whole, monkeypatch, capfd):
    stopped_at(whole, "lost", 5, monkeypatch)
    out = whole / "lost"
    for spoil in (
        lambda: [(folder / "optimizer.pt").unlink() for folder in out.glob("checkpoint-*")],
        lambda: (out / "metrics.jsonl").write_text((out / "metrics.jsonl").read_text().split("\n", 1)[1]),
        lambda: (out / "selection.parquet").unlink(),
    ):
        kept = shutil.copytree(out, whole / "kept")
        spoil()
        capfd.readouterr()
        assert main(words(whole, "lost", save_total_limit=2, logging_steps=4)) == 2
        said = capfd.readouterr().err.strip().splitlines()[-1]
        assert "has no undamaged checkpoint to resume from" in said
        shutil.rmtree(out)
        kept.rename(out)
    assert main(words(whole, "lost", save_total_limit=2, logging_steps=4)) == 0


# ---- the disk


def test_a_write_that_fails_midway_keeps_the_last_checkpoint(whole, monkeypatch, capfd):
    """The system itself refuses the bytes beyond a limit, in the middle of the second checkpoint."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    at_step(monkeypatch, 4, lambda _: resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, limits[1])))
    try:
        assert main(words(whole, "limited")) == 2
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    said = capfd.readouterr().err.strip().splitlines()[-1]
    assert said.startswith("uncertune: error: output_dir")
    assert "cannot be written" in said
    assert f"{whole / 'limited'}/checkpoint-2', is kept" in said
    assert [path.name for path in (whole / "limited").glob("checkpoint-*")] == ["checkpoint-2"]
    monkeypatch.undo()
    assert main(words(whole, "limited")) == 0
    same(whole, "limited")


def test_a_full_disk_is_named(tmp_path, monkeypatch, capfd, whole):
    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "optimizer.pt")

    monkeypatch.setattr(torch, "save", full)
    assert main(words(whole, "full")) == 2
    said = capfd.readouterr().err.strip().splitlines()[-1]
    assert "No space left on device; no checkpoint was saved yet: free some space" in said
    assert not list((whole / "full").glob("checkpoint-*"))


def test_what_counts_as_the_disks_refusal(tmp_path):
    inner = RuntimeError("unexpected pos 64 vs 0")
    inner.__context__ = OSError(errno.ENOSPC, "No space left on device")
    assert disk_error(inner).errno == errno.ENOSPC
    assert disk_error(Exception("I/O error: No space left on device (os error 28)")).errno == errno.ENOSPC
    assert disk_error(RuntimeError("PytorchStreamWriter failed writing file data/3")).errno == errno.EIO
    closing = "[enforce fail at inline_container.cc:664] . unexpected pos 64 vs 0"
    assert disk_error(RuntimeError(closing)).errno == errno.EIO
    assert disk_error(RuntimeError("shapes do not match")) is None
    assert disk_error(FileNotFoundError(errno.ENOENT, "no such file")) is None
    with pytest.raises(RuntimeError, match="shapes"), explained(tmp_path):
        raise RuntimeError("shapes do not match")


def test_a_folder_that_cannot_be_made(whole, capfd):
    given = words(whole, "unused")
    given[given.index("--output_dir") + 1] = "/proc/uncertune"
    assert main(given) == 2
    assert "output_dir '/proc/uncertune' cannot be made" in capfd.readouterr().err.strip().splitlines()[-1]


# ---- non-finite numbers


def spoil(trainer):
    """As a step far too long would."""
    weight = next(p for name, p in trainer.model.named_parameters() if "lora_B" in name)
    weight.data.fill_(float("nan"))


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({}, "step 3, micro-batch 1 of 2: the loss of a token is nan"),
        ({"objective": "mle", "selection_scope": None}, "step 3, micro-batch 1 of 2 (documents "),
    ],
    ids=["score", "loss"],
)
def test_a_loss_that_is_no_number_names_step_and_batch(whole, monkeypatch, capfd, fields, says):
    out = f"nan-{fields.get('objective')}"
    at_step(monkeypatch, 3, spoil)
    assert main(words(whole, out, **fields)) == 2
    said = capfd.readouterr().err.strip().splitlines()[-1]
    assert says in said
    assert "checkpoint-2', is kept" in said
    assert [path.name for path in (whole / out).glob("checkpoint-*")] == ["checkpoint-2"]


def test_a_gradient_that_is_no_number_stops_before_the_optimizer(whole, monkeypatch, capfd):
    def infinite(trainer):
        weight = next(p for name, p in trainer.model.named_parameters() if "lora_B" in name)
        weight.register_hook(lambda gradient: gradient * float("inf"))

    at_step(monkeypatch, 4, infinite)
    assert main(words(whole, "gradient")) == 2
    said = capfd.readouterr().err.strip().splitlines()[-1]
    assert "step 4: the gradient is nan, the loss is not" in said or "step 4: the gradient is inf" in said
    assert "checkpoint-2', is kept" in said
