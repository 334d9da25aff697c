"""The tables of docs/performance.md are those of the CSV files beside it."""

from pathlib import Path

import pytest

from benchmarks.tables import markdown

DOCS = Path(__file__).parent.parent / "docs"


@pytest.mark.parametrize("path", sorted((DOCS / "performance").glob("*.csv")), ids=lambda path: path.stem)
def test_the_page_holds_the_table(path):
    assert markdown(path) in (DOCS / "performance.md").read_text()
