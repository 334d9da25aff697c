"""A run folder that is damaged or cannot be written is one line that names it."""

from pathlib import Path

import pytest

from uncertune.cli.main import main
from uncertune.errors import UserError
from uncertune.runs.folder import check_usable, read


@pytest.mark.parametrize("content", ["junk", "[1]", '{"identity": 3}', "\x00"])
def test_a_damaged_record_is_named(tmp_path, content, capsys):
    assert read(tmp_path) == {}
    (tmp_path / "run.json").write_text(content)
    with pytest.raises(UserError, match=r"run\.json' is damaged"):
        check_usable(tmp_path)
    assert main(["report", str(tmp_path)]) == 2
    assert "run.json' is damaged" in capsys.readouterr().err


BAD = ["/dev/null", "/dev/null/x", "/proc", "/proc/x", "/tmp/" + "n" * 300]


@pytest.mark.parametrize("path", BAD)
@pytest.mark.parametrize("command", ["score", "report", "merge", "evaluate"])
def test_an_output_folder_that_cannot_be_written_is_one_line(tmp_path, path, command, capsys):
    (tmp_path / "adapter_config.json").write_text("{}")
    words = {
        "score": ["alpaca", "--model", str(tmp_path)],
        "report": [str(tmp_path)],
        "merge": [str(tmp_path)],
        "evaluate": [str(tmp_path), "--tasks", "gsm8k"],
    }
    assert main([command, *words[command], "--output_dir", path]) == 2
    (said,) = capsys.readouterr().err.strip().splitlines()
    assert f"output_dir '/{path.split('/')[1]}" in said  # merge names the folder in which the new one would be


@pytest.mark.parametrize("path", BAD)
def test_a_run_is_refused_in_such_a_folder(path):
    with pytest.raises(UserError, match="output_dir"):
        check_usable(Path(path))
