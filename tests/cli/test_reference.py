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
