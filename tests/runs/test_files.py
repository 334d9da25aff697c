"""Files and folders appear whole or not at all."""

import pytest

from uncertune.runs.files import atomic_file, atomic_folder, file_entry, intact, write_atomically


def test_a_failed_write_keeps_the_old_file_and_leaves_nothing_else(tmp_path):
    write_atomically(tmp_path / "a.json", "old")
    with pytest.raises(FileNotFoundError), atomic_file(tmp_path / "a.json") as temporary:
        temporary.rename(tmp_path / "b.json")
    (tmp_path / "b.json").unlink()
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("a.json", "old")]
    write_atomically(tmp_path / "a.json", b"new")
    assert (tmp_path / "a.json").read_bytes() == b"new"
    assert (tmp_path / "a.json").stat().st_mode & 0o777 == 0o644


def test_a_folder_replaces_an_empty_one_only(tmp_path):
    (tmp_path / "out").mkdir()
    with atomic_folder(tmp_path / "out") as temporary:
        (temporary / "file").write_text("1")
    with pytest.raises(OSError, match="not empty"), atomic_folder(tmp_path / "out"):
        pass
    assert (tmp_path / "out" / "file").read_text() == "1"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_changed_or_truncated_file_is_not_intact(tmp_path):
    file = tmp_path / "weights"
    file.write_bytes(bytes(1000))
    entry = file_entry(file)
    assert intact(file, entry)
    file.write_bytes(bytes(999) + b"\x01")
    assert not intact(file, entry)
    file.write_bytes(b"")
    assert not intact(file, entry)
    file.unlink()
    assert not intact(file, entry)
