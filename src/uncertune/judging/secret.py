"""Keep a key out of all output, also if a server repeats it in another encoding."""

from __future__ import annotations

import base64
import binascii
import contextlib
import html
import re
from collections.abc import Iterator
from urllib.parse import unquote_plus

WITHHELD = "(withheld: it repeats the key)"
_PIECE = 8
"""This many consecutive characters of a key count as the key."""
_BASE64 = re.compile(r"[A-Za-z0-9+/_-]{8,}")
_HEX = re.compile(r"(?:[0-9a-fA-F]{2}[\s:]?){4,}")
_ESCAPE = re.compile(r"\\(?:u\{?|x|U0*)([0-9a-fA-F]{2,6})\}?")
_LONGEST = 100_000


def withhold(text: str, key: str | None) -> str:
    """``text``, or a note instead if it contains the key or eight consecutive characters of it.

    The key is found verbatim, reversed, in other case, with spaces or invisible characters inside, in percent, HTML,
    JSON and hex escapes, and in Base64.
    """
    if not key or not text:
        return text
    text = text[:_LONGEST]
    pieces = {key[start : start + _PIECE].casefold() for start in range(max(1, len(key) - _PIECE + 1))}
    for form in _forms(text):
        folded = form.casefold()
        if any(piece in folded or piece[::-1] in folded for piece in pieces):
            return WITHHELD
    return text


def _forms(text: str) -> Iterator[str]:
    """The text, and its decoded forms."""
    plain = [text, unquote_plus(text), unquote_plus(unquote_plus(text)), html.unescape(text), _unescaped(text)]
    plain += [html.unescape(unquote_plus(_unescaped(text)))]
    for form in dict.fromkeys(plain):
        yield form
        yield "".join(letter for letter in form if letter.isprintable() and not letter.isspace())
        for run in _BASE64.findall(form):
            yield from _decoded(run)
        for run in _HEX.findall(form):
            with contextlib.suppress(ValueError):
                yield bytes.fromhex(re.sub(r"[\s:]", "", run)).decode("latin-1")


def _unescaped(text: str) -> str:
    r"""``\u0073``, ``\x73`` and similar escapes as characters."""
    return _ESCAPE.sub(lambda found: chr(min(int(found[1], 16), 0x10FFFF)), text)


def _decoded(run: str) -> Iterator[str]:
    """A run of Base64 decoded from each of four offsets, since the key may begin within a group."""
    run = run.replace("-", "+").replace("_", "/")
    for start in range(4):
        part = run[start:]
        part = part[: len(part) - len(part) % 4] or part
        with contextlib.suppress(binascii.Error, ValueError):
            yield base64.b64decode(part + "=" * (-len(part) % 4)).decode("latin-1")
        with contextlib.suppress(binascii.Error, ValueError):  # the last group may be incomplete
            whole = run[start:]
            yield base64.b64decode(whole + "=" * (-len(whole) % 4)).decode("latin-1")
