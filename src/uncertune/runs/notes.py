"""Notes to the user on stderr, beside results on stdout."""

from __future__ import annotations

import shutil
import sys
import textwrap


def note(text: str) -> None:
    """Print a line to stderr; a terminal gets it broken between words, with the following lines indented."""
    if sys.stderr.isatty():
        width = shutil.get_terminal_size((80, 24)).columns
        text = textwrap.fill(text, width, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False)
    print(text, file=sys.stderr, flush=True)
