"""The tables of the pages in docs are those of the files beside them, and the site builds without a warning."""

import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.tables import markdown
from uncertune.data.sources import BUILTIN, FORMATS
from uncertune.objectives import OBJECTIVES, TOKEN_WEIGHTINGS
from uncertune.selection.metrics import METRICS
from uncertune.studies.writing import markdown as markdown_of_findings

DOCS = Path(__file__).parent.parent / "docs"
RESULTS = DOCS / "results"


@pytest.mark.parametrize("path", sorted((RESULTS / "performance").glob("*.csv")), ids=lambda path: path.stem)
def test_the_page_holds_the_table(path):
    assert markdown(path) in (RESULTS / "performance.md").read_text()


@pytest.mark.parametrize("name", ["alpaca", "gsm8k"])
def test_the_page_of_uncertainty_holds_what_was_scored(name):
    """``uncertune score`` wrote both files in one go; the page quotes the table, the rates come from a second run."""
    page = (RESULTS / "uncertainty.md").read_text()
    assert (RESULTS / "uncertainty" / f"{name}.md").read_text().strip() in page
    rates = json.loads((RESULTS / "uncertainty" / f"{name}-rates.json").read_text())["mean_epistemic_by_rate"]
    for found in rates.values():
        assert f"{found['value']:.3f} [{found['low']:.3f}, {found['high']:.3f}]" in page


def test_the_page_of_uncertainty_holds_what_the_hardest_tokens_are():
    assert (RESULTS / "uncertainty" / "hardest.md").read_text().strip() in (RESULTS / "uncertainty.md").read_text()


def test_the_page_of_data_names_every_format_and_every_data_set():
    page = (DOCS / "how-to" / "data.md").read_text()
    for format in FORMATS:
        assert f"| `{format}` |" in page
    for name, one in BUILTIN.items():
        files = ", ".join(f"`{file}`" for file in one.files.values())
        assert f"| `{name}` | {files}" in page
        assert one.hub_id in (None, "json") or f"| {one.hub_id} |" in page


@pytest.mark.parametrize(
    ("page", "names"),
    [
        ("objectives", OBJECTIVES),
        ("objectives", [f"token_weighting: {name}" for name in TOKEN_WEIGHTINGS if name != "none"]),
        ("selection", METRICS),
    ],
    ids=["objectives", "weightings", "metrics"],
)
def test_a_reference_names_every_entry(page, names):
    """Each in a row of a table."""
    rows = [row for row in (DOCS / "reference" / f"{page}.md").read_text().splitlines() if row.startswith("|")]
    for name in names:
        assert any(f"`{name}`" in row for row in rows), name


@pytest.mark.parametrize("step", [0, 5, 15, 25])
def test_the_page_of_uncertainty_holds_the_course_of_training(step):
    found = json.loads((RESULTS / "uncertainty" / f"training-{step}.json").read_text())
    means = found["mean_nats"]
    row = f"| {step} | " + " | ".join(f"{means[name]:.3f}" for name in ("loss", "entropy", "aleatoric"))
    change = found.get("change", {}).get("epistemic")
    said = f"{change['value']:+.4f} [{change['low']:+.4f}, {change['high']:+.4f}]" if change else ""
    assert f"{row} | {means['epistemic']:.4f} | {said} |" in (RESULTS / "uncertainty.md").read_text()


@pytest.mark.parametrize("path", sorted((RESULTS / "studies").glob("*.md")), ids=lambda path: path.stem)
def test_the_pages_of_studies_hold_what_came_out(path):
    found = path.read_text().strip()
    assert found in (RESULTS / "studies.md").read_text() + (RESULTS / "language.md").read_text()
    assert found == markdown_of_findings(json.loads(path.with_suffix(".json").read_text())).strip()


@pytest.mark.skipif(importlib.util.find_spec("sphinx") is None, reason="needs the extra docs")
def test_the_site_builds_without_warnings(tmp_path):
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-b", "html", str(DOCS), str(tmp_path)]
    built = subprocess.run(command, capture_output=True, text=True)
    assert (built.returncode, built.stderr) == (0, "")
    page = (tmp_path / "reference" / "api.html").read_text()
    for name in ("uncertune.objectives.weighted_nll", "uncertune.selection.select", "selection_fraction"):
        assert name in page


@pytest.mark.parametrize(
    "name",
    ["reference/objectives", "reference/selection", "reference/teacher_cache", "how-to/scale", "how-to/judge"],
)
def test_the_code_of_a_page_runs(name, monkeypatch, tmp_path, capsys):
    """All blocks of Python of a page, in their order, as one program that prints its blocks of text."""
    page = (DOCS / f"{name}.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL)
    assert blocks
    monkeypatch.chdir(tmp_path)
    exec(compile("\n".join(blocks), f"{name}.md", "exec"), {})
    assert "".join(re.findall(r"```text\n(.*?)```", page, flags=re.DOTALL)) == capsys.readouterr().out
