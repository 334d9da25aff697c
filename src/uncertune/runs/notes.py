"""Notes to the user on stderr, beside results on stdout, and what is known of the terminal that shows them."""

from __future__ import annotations

import shutil
import sys
import textwrap

NO_BARS = ("TQDM_DISABLE", "HF_DATASETS_DISABLE_PROGRESS_BARS", "HF_HUB_DISABLE_PROGRESS_BARS")
"""Environment variables that turn off the progress bars of tqdm, datasets and huggingface_hub."""


def columns() -> int | None:
    """The width of the terminal that stderr writes to; None if it is no terminal."""
    return shutil.get_terminal_size((80, 24)).columns if sys.stderr.isatty() else None


def note(text: str) -> None:
    """Print a line to stderr; a terminal gets it broken between words, with the following lines indented."""
    if (width := columns()) is not None:
        text = textwrap.fill(text, width, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False)
    print(text, file=sys.stderr, flush=True)
