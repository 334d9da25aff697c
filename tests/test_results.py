"""The tables in ``results`` are those of the runs beside them, and each folder names the command that made it."""

import re
import shutil
from pathlib import Path

import pytest

from uncertune.report.sweep import write_sweep
from uncertune.report.sweep_measures import difference, read_sweep

RESULTS = Path(__file__).parent.parent / "results"
FOLDERS = sorted(path.parent for path in RESULTS.glob("*/sweep.json"))
COMMANDS = dict(
    re.findall(r"^\| `([\w-]+)` \| `uncertune sweep --config (\S+)", (RESULTS / "README.md").read_text(), re.M)
)


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda path: path.name)
def test_the_table_is_that_of_the_runs(folder, tmp_path):
    assert folder.name in COMMANDS
    shutil.copy(folder / "sweep.json", tmp_path)
    write_sweep(tmp_path)
    assert (tmp_path / "sweep.md").read_text() == (folder / "sweep.md").read_text()


@pytest.mark.parametrize("recipe", COMMANDS.values())
def test_a_command_names_a_recipe(recipe):
    assert (RESULTS.parent / recipe).is_file()


def losses(folder):
    """A row a data set: each arm's loss less that of MLE with the same seed."""
    sweep = read_sweep(folder)
    for name in sweep.sets:
        found = [difference(sweep, arm, name, "loss") for arm in sweep.others]
        cells = [f"{one.value:+.3f} [{one.low:+.3f}, {one.high:+.3f}]".replace("-", "−") for one in found]
        yield f"| {sweep.content['data']} | {name} | " + " | ".join(cells) + " |"


@pytest.mark.parametrize(
    ("page", "name"), [("results/README.md", "gsm8k"), ("results/README.md", "alpaca"), ("README.md", "gsm8k")]
)
def test_the_pages_quote_the_runs(page, name):
    text = (RESULTS.parent / page).read_text()
    for row in losses(RESULTS / name):
        assert row in text


def test_the_readme_quotes_the_demo():
    assert (RESULTS / "demo" / "table.md").read_text().strip() in (RESULTS.parent / "README.md").read_text()
