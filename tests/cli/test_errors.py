"""Every named mistake ends in the line of docs/reference/errors.md."""

import sys

import pytest

from helpers.mistakes import MISTAKES, Room, line_of
from tools.error_reference import PAGE, row

PINNED = sys.version_info[:2] == (3, 11)  # other versions word some errors differently


@pytest.fixture(scope="module")
def room(tmp_path_factory):
    return Room(tmp_path_factory.mktemp("room"))


@pytest.mark.filterwarnings("ignore::FutureWarning")  # of a field that transformers will rename
@pytest.mark.parametrize("group", MISTAKES)
def test_every_mistake_is_the_line_of_the_page(room, group):
    page = PAGE.read_text(encoding="utf-8")
    for mistake in MISTAKES[group]:
        if mistake.possible:
            line = row(mistake.what, line_of(room, mistake))
            assert not PINNED or line in page, f"run: python -m tools.error_reference\n{line}"


def test_the_page_names_no_other_mistakes():
    rows = [line for line in PAGE.read_text(encoding="utf-8").splitlines() if line.startswith("| ")]
    named = [mistake.what.replace("|", "\\|") for some in MISTAKES.values() for mistake in some]
    assert [line.split(" | `` ")[0].removeprefix("| ") for line in rows if " | `` " in line] == named
