"""Killed at any moment, the same command goes on and ends with the same bytes."""

import json
import shutil

import pytest

from helpers.harness import rows, settings
from helpers.killable import arguments, finish, kill_at, steps
from helpers.tiny import save_tiny
from uncertune.cli import main
from uncertune.errors import UserError
from uncertune.runs import read_metrics
from uncertune.runs.checkpoints import MARKER, latest_complete, remove_unusable
from uncertune.runs.replacing import recover, release, set_aside
from uncertune.training.pipeline import Job, _settings
from uncertune.training.runlog import cut_metrics
from uncertune.training.trainer import UncertuneTrainer


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("resume")
    model = save_tiny(folder / "model", marked=True)
    finish(arguments(model, folder / "whole"), folder / "log")
    return folder


def test_killed_in_both_stages_it_ends_with_the_same_bytes(whole):
    out, words = whole / "killed", arguments(whole / "model", whole / "killed")
    kill_at(words, out / "stage1" / "metrics.jsonl", 7, whole / "log")
    kill_at(words, out / "metrics.jsonl", 5, whole / "log")
    said = finish(words, whole / "log")
    assert "resuming at step" in said
    assert "complete" in said  # stage 1 is reused
    for name in ("adapter_model.safetensors", "stage1/adapter_model.safetensors", "selection.parquet", "probe.jsonl"):
        assert (out / name).read_bytes() == (whole / "whole" / name).read_bytes(), name
    for stage in (".", "stage1"):
        assert steps(out / stage) == steps(whole / "whole" / stage)
        assert [row["step"] for row in steps(out / stage)] == list(range(1, 13))


def test_checkpoints_hold_the_students_adapter_alone(whole):
    kept = sorted(path.name for path in (whole / "whole").glob("checkpoint-*"))
    assert kept == ["checkpoint-10", "checkpoint-12"]  # every 10 % of 12 steps, the last two kept
    for name in kept:
        files = {path.name for path in (whole / "whole" / name).iterdir()}
        assert {MARKER, "adapter_model.safetensors", "optimizer.pt"} <= files
        assert not any("reference" in file for file in files)


def test_a_second_call_trains_nothing_and_overwrite_trains_again(whole, capsys):
    out = shutil.copytree(whole / "whole", whole / "again")
    before = (out / "adapter_model.safetensors").stat().st_mtime_ns
    words = arguments(whole / "model", out)
    assert main(words) == 0
    assert "complete" in capsys.readouterr().err
    assert (out / "adapter_model.safetensors").stat().st_mtime_ns == before
    assert main([*words, "--overwrite"]) == 0
    assert (out / "adapter_model.safetensors").stat().st_mtime_ns > before
    assert (out / "stage1" / "report.html").is_file()


def test_another_run_in_the_folder_is_named_by_its_difference(whole, capsys):
    changes = {"learning_rate": 2e-3}, {"max_train_samples": 40}, {"seed": 7}
    for change, name in zip(changes, ("learning_rate", "data", "seed"), strict=True):
        assert main(arguments(whole / "model", whole / "whole", **change)) == 2
        error = capsys.readouterr().err.strip().splitlines()[-1]
        assert "holds another run" in error
        assert name in error
    other = save_tiny(whole / "other", marked=True, seed=3)
    assert main(arguments(other, whole / "whole")) == 2
    assert "model" in capsys.readouterr().err.strip().splitlines()[-1]


def test_the_resolved_configuration_is_the_run(whole, capsys):
    words = ["train", "--config", str(whole / "whole" / "config.yaml"), "--teacher", "auto"]
    assert main([*words, "--output_dir", str(whole / "whole")]) == 0
    assert "complete" in capsys.readouterr().err


def test_overwrite_never_deletes_what_the_run_reads_or_others_wrote(whole, capsys):
    model = save_tiny(whole / "model2", marked=True)
    assert main([*arguments(model, model), "--overwrite"]) == 2
    assert "which the run reads" in capsys.readouterr().err
    assert (model / "model.safetensors").is_file()
    foreign = save_tiny(whole / "foreign", marked=True)
    assert main([*arguments(whole / "model", foreign), "--overwrite"]) == 2
    assert "did not start" in capsys.readouterr().err
    assert (foreign / "model.safetensors").is_file()


def test_unfinished_checkpoints_and_half_lines_do_not_count(tmp_path):
    for step, files in ((2, [MARKER]), (4, ["model.safetensors"])):
        (tmp_path / f"checkpoint-{step}").mkdir()
        for name in files:
            (tmp_path / f"checkpoint-{step}" / name).write_text("{}")
    assert latest_complete(tmp_path).name == "checkpoint-2"
    remove_unusable(tmp_path, None)
    assert not (tmp_path / "checkpoint-4").exists()
    log = tmp_path / "metrics.jsonl"
    log.write_text("".join(json.dumps({"kind": "step", "step": n}) + "\n" for n in (1, 2, 3)) + '{"kind": "st')
    cut_metrics(log, 2)
    assert [row["step"] for row in read_metrics(log)] == [1, 2]


def test_overwrite_keeps_the_old_run_until_the_new_one_has_a_checkpoint(whole, monkeypatch, capsys):
    """A failure that comes once training has begun."""

    def failing(self, *args, **kwargs):
        raise UserError("the first step fails")

    out = shutil.copytree(whole / "whole", whole / "precious")
    before = {path.relative_to(out): path.read_bytes() for path in out.rglob("*") if path.is_file()}
    with monkeypatch.context() as patched:
        patched.setattr(UncertuneTrainer, "training_step", failing)
        assert main([*arguments(whole / "model", out), "--overwrite"]) == 2
    assert "the first step fails" in capsys.readouterr().err
    after = {path.relative_to(out): path.read_bytes() for path in out.rglob("*") if path.is_file()}
    assert {name: after.get(name) == content for name, content in before.items()} == dict.fromkeys(before, True)
    assert not (out / ".previous").exists()
    assert main(arguments(whole / "model", out)) == 0
    assert "complete" in capsys.readouterr().err


def test_a_killed_replacement_gives_the_old_run_back(tmp_path):
    write_run(tmp_path, "old")
    set_aside(tmp_path)
    assert not (tmp_path / "run.json").exists()
    write_run(tmp_path, "new", complete=False)  # killed here, without a checkpoint
    set_aside(tmp_path)
    recover(tmp_path)
    assert (tmp_path / "metrics.jsonl").read_text() == "old"
    assert not (tmp_path / ".previous").exists()
    set_aside(tmp_path)
    write_run(tmp_path, "new", complete=False)
    (tmp_path / "checkpoint-2").mkdir()
    (tmp_path / "checkpoint-2" / MARKER).write_text("{}")
    recover(tmp_path)  # the new run can go on
    assert (tmp_path / "metrics.jsonl").read_text() == "new"
    release(tmp_path)
    assert not (tmp_path / ".previous").exists()


def write_run(folder, text, complete=True):
    (folder / "run.json").write_text(json.dumps({"complete": complete, "identity": {}}))
    (folder / "metrics.jsonl").write_text(text)


def test_what_decides_the_best_checkpoint_is_part_of_the_run(tmp_path):
    def settings_of(**fields):
        fields = {"eval_strategy": "steps", "eval_steps": 2, "save_strategy": "steps", "save_steps": 2, **fields}
        return _settings(Job("model", settings(tmp_path, **fields), rows()), None)

    assert settings_of() == settings_of(eval_steps=4, save_steps=4)
    best = {"load_best_model_at_end": True}
    assert settings_of(**best) != settings_of(**best, eval_steps=1)
    assert settings_of(**best) == settings_of(**best, save_total_limit=3)
