"""``uncertune completion``, by the shell that reads it."""

import shutil
import subprocess

import pytest

from uncertune.cli import main
from uncertune.cli.completion import script

pytestmark = pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")


def completed(*words):
    """What bash offers for the last word."""
    asked = " ".join(f"'{word}'" for word in words)
    program = (
        f'{script("bash")}\nCOMP_WORDS=({asked}); COMP_CWORD={len(words) - 1}; _uncertune; echo "${{COMPREPLY[@]}}"'
    )
    done = subprocess.run(["bash", "-c", program], capture_output=True, text=True, check=True)
    assert done.stderr == ""
    return done.stdout.split()


def test_commands_options_and_values():
    assert completed("uncertune", "s") == ["score", "sweep", "study"]
    assert completed("uncertune", "train", "--selection_l") == ["--selection_level"]
    assert "--learning_rate" in completed("uncertune", "train", "--l")
    assert completed("uncertune", "train", "--objective", "masked") == ["masked_mle", "masked_mle_distill"]
    assert completed("uncertune", "init", "--for", "a") == ["anchor"]
    assert "--for" in completed("uncertune", "init", "--f")
    assert completed("uncertune", "score", "--log_level", "w") == ["warning"]
    assert "paper/gemma-2-2b_alpaca_distill" in completed("uncertune", "train", "--config", "paper/")


def test_files(tmp_path):
    (tmp_path / "rows.jsonl").write_text("")
    assert completed("uncertune", "train", "--dataset_name", f"{tmp_path}/ro") == [f"{tmp_path}/rows.jsonl"]


def test_the_command_prints_it(capsys):
    assert main(["completion", "zsh"]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("autoload -Uz bashcompinit")
    assert main(["completion", "fish"]) == 2
