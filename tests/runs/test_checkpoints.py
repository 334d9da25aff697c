"""A checkpoint counts only while its files, and the run's records up to it, are as they were written."""

import json
import shutil

import pytest

from uncertune.errors import UserError
from uncertune.runs.checkpoints import MARKER, damage, latest_intact, mark_complete, record_entry, remove_unusable
from uncertune.runs.files import atomic_file
from uncertune.runs.records import PARTS, selection_table


@pytest.fixture
def run(tmp_path):
    """Two checkpoints, and a record file that grew between them."""
    for step in (2, 4):
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        (folder / "weights").write_bytes(bytes([step]) * 100)
        (folder / "trainer_state.json").write_text(json.dumps({"best_model_checkpoint": "/elsewhere/checkpoint-2"}))
        with open(tmp_path / "metrics.jsonl", "a") as file:
            file.write(f"{step}\n")
        mark_complete(tmp_path, step, {"metrics.jsonl": record_entry(tmp_path / "metrics.jsonl")})
    return tmp_path


def test_the_latest_undamaged_checkpoint_is_used(run, capsys):
    assert latest_intact(run) == run / "checkpoint-4"
    (run / "metrics.jsonl").write_text("2\n4\nmore\n")
    assert latest_intact(run) == run / "checkpoint-4"
    (run / "checkpoint-4" / "weights").write_bytes(bytes(100))
    assert latest_intact(run) == run / "checkpoint-2"
    assert "skipping" in capsys.readouterr().err
    remove_unusable(run, run / "checkpoint-2")
    assert not (run / "checkpoint-4").exists()


def test_every_kind_of_damage_is_named(run):
    last = run / "checkpoint-4"
    for file, content, says in (
        (last / "weights", b"", "weights was changed or cut short"),
        (last / "weights", None, "weights is missing"),
        (last / MARKER, b"junk", "uncertune.json is damaged"),
        (last / MARKER, b'{"step": 4}', "uncertune.json is damaged"),
        (run / "metrics.jsonl", b"2\n", "metrics.jsonl has lost records"),
        (run / "metrics.jsonl", None, "metrics.jsonl has lost records"),
        (run / "checkpoint-2" / "weights", b"", "the best checkpoint so far, checkpoint-2, is damaged"),
    ):
        before = file.read_bytes()
        file.unlink() if content is None else file.write_bytes(content)
        assert says in (damage(last) or "")
        file.write_bytes(before)
        assert damage(last) is None
    shutil.rmtree(run / "checkpoint-2")
    assert "the best checkpoint so far, checkpoint-2, is missing" in (damage(last) or "")


def test_what_a_kill_leaves_of_a_write_is_no_record(run):
    (run / PARTS).mkdir()
    writing = atomic_file(run / PARTS / "000002-0.parquet")
    left = writing.__enter__()  # killed here: the file stays, empty
    assert selection_table(run) is None
    assert latest_intact(run) == run / "checkpoint-4"
    remove_unusable(run, run / "checkpoint-4")
    assert not left.exists()


def test_where_none_is_left_it_is_one_line(run):
    for step in (2, 4):
        (run / f"checkpoint-{step}" / "weights").unlink()
    with pytest.raises(UserError, match=r"no undamaged checkpoint to resume from \(checkpoint-4: weights is missing"):
        latest_intact(run, quiet=True)
