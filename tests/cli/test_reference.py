"""``docs/reference/cli.md`` is current, and ``--help`` imports nothing heavy."""

import subprocess
import sys

import pytest

from tools.cli_reference import PAGE, page
from uncertune.cli.main import COMMANDS


def test_the_page_is_current():
    assert PAGE.read_text(encoding="utf-8") == page(), "run: python -m tools.cli_reference"


@pytest.mark.parametrize("command", COMMANDS)
def test_help_imports_nothing_heavy(command):
    code = (
        "import sys; from uncertune.cli import main; main([sys.argv[1], '--help']); "
        "sys.exit(bool({'torch', 'transformers', 'trl', 'numpy'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code, command], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert f"usage: uncertune {command}" in done.stdout
    assert "--config FILE" in done.stdout


@pytest.mark.parametrize(
    "words",
    [
        ["train", "--dataset_name", "no.jsonl"],
        ["check", "--dataset_name", "no.jsonl"],
        ["sweep", "--dataset_name", "no.jsonl"],
        ["sweep", "--out", "no.jsonl@test"],
        ["score", "no.jsonl", "--model", "m", "--output_dir", "out"],
        ["evaluate", "m", "--tasks", "tokens:no.jsonl", "--output_dir", "out"],
        ["compare", "m", "n", "--prompts", "no.jsonl", "--output_dir", "out"],
        ["generate", "m", "--prompts", "no.jsonl", "--output_dir", "out"],
    ],
    ids=" ".join,
)
def test_a_missing_file_is_refused_before_anything_heavy_is_imported(words, tmp_path):
    (tmp_path / "run.yaml").write_text("model_name_or_path: m\ndataset_name: alpaca\nobjective: mle\noutput_dir: out\n")
    (tmp_path / "sweep.yaml").write_text(
        "model_name_or_path: m\ndataset_name: alpaca\nsweep: {arms: {objective: mle}}\n"
    )
    if words[0] in ("train", "check"):
        words = [*words, "--config", "run.yaml"]
    elif words[0] == "sweep":
        words = [*words, "--config", "sweep.yaml", "--output_dir", "out"]
    code = (
        "import sys; from uncertune.cli import main; s = main(sys.argv[1:]); print('torch' in sys.modules); sys.exit(s)"
    )
    command = [sys.executable, "-c", code, *words]
    done = subprocess.run(command, check=False, capture_output=True, text=True, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "False\n")
    assert "data 'no.jsonl': no such file" in done.stderr
    assert not (tmp_path / "out").exists()
