"""Folders that cannot be written and files that cannot be opened: one line, status 2, what was there stays."""

import sys

import pytest

from helpers.limits import few_files, read_only
from helpers.mistakes import RUN, Room
from uncertune.cli import main

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="capabilities and limits of Linux")

SCORE = "score {data} --model {model} --samples 1 --bootstrap 10 --output_dir {out}"
LINES = {
    "train": RUN,
    "score": SCORE,
    "merge": "merge {run} --output_dir {out}",
    "report": "report {run} --output_dir {out}",
    "evaluate": "evaluate {model} --tasks tokens:{data} --output_dir {out}",
    "generate": "generate {model} --prompts {data} --max_new_tokens 1 --output_dir {out}",
    "compare": "compare {one} {two} --judge {model} --output_dir {out}",
}


@pytest.fixture(scope="module")
def room(tmp_path_factory):
    return Room(tmp_path_factory.mktemp("limits"))


def words(room, line, **places):
    return [word.format(**{**room.places, **places}) for word in line.split()]


def one_line(err):
    assert "Traceback" not in err
    assert err.count("uncertune: error: ") == 1, err[-2000:]
    line = err.splitlines()[-1]
    assert line.startswith("uncertune: error: ")
    return line


def content(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("command", LINES)
def test_a_folder_in_one_that_cannot_be_written(room, tmp_path, capsys, command):
    with read_only(tmp_path):
        assert main(words(room, LINES[command], out=tmp_path / "out")) == 2
    line = one_line(capsys.readouterr().err)
    assert "output_dir" in line
    assert str(tmp_path) in line
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("command", [name for name in LINES if name != "merge"])
def test_a_folder_whose_content_became_read_only(room, tmp_path, capsys, command):
    """What a command wrote earlier: it is neither changed nor needed again, or the line says so."""
    line = words(room, LINES[command], out=tmp_path / "out")
    assert main(line) == 0, capsys.readouterr().err
    before = content(tmp_path)
    capsys.readouterr()
    with read_only(tmp_path / "out"):
        assert main(line) == 2
    assert str(tmp_path / "out") in one_line(capsys.readouterr().err)
    assert content(tmp_path) == before


@pytest.mark.parametrize("more", [1, 2, 5])
@pytest.mark.parametrize("command", LINES)
def test_few_open_files(room, tmp_path, capsys, command, more):
    line = words(room, LINES[command], out=tmp_path / "out")
    with few_files(more):
        status = main(line)
    err = capsys.readouterr().err
    assert status in (0, 2), err[-2000:]
    if status == 2:
        assert "Too many open files" in one_line(err)
        assert main(line) == 0, capsys.readouterr().err
