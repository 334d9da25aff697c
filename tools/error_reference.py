"""``python -m tools.error_reference``: writes docs/reference/errors.md, mistakes of every kind and the line of each.

Run it where the optional packages that the page names are not installed.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "reference" / "errors.md"
_LONGEST = 300  # characters of a line; some hold a list of all that is possible
_HEAD = """# Errors

A mistake ends a command with one line that names the field or file, the value and, where it is known, the fix; the
status is 2, and nothing is left in `output_dir`. These are the mistakes that the tests try, each with its line (without
`uncertune: error: `). Anything unforeseen is one line with status 1 and the file of its traceback, which `--debug` or
`UNCERTUNE_DEBUG=1` shows instead.

This page is written by `python -m tools.error_reference`.
"""


def row(what: str, line: str) -> str:
    """One row of a table."""
    line = line if len(line) <= _LONGEST else line[:_LONGEST] + "…"
    return f"| {_cell(what)} | `` {_cell(line)} `` |"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def page(lines: Mapping[str, Sequence[tuple[str, str]]]) -> str:
    """The page: by group, what a user did and the line that follows."""
    out = [_HEAD]
    for group, found in lines.items():
        out += [f"## {group}\n", "| Mistake | Line |", "|---|---|", *(row(*one) for one in found), ""]
    return "\n".join(out)


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT / "tests"))
    from helpers.mistakes import MISTAKES, Room, line_of

    with tempfile.TemporaryDirectory() as folder:
        room = Room(Path(folder))
        found = {group: [(one.what, line_of(room, one)) for one in some] for group, some in MISTAKES.items()}
    PAGE.write_text(page(found), encoding="utf-8")
