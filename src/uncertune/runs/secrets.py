"""Keep secrets out of a run's files: tokens, keys and passwords, by name or by value."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Any

HIDDEN = "***"
_SECRET = r"(?:token|key|secret|password|passwd|credentials?)"
_NAME = re.compile(rf"(?:^|[_\W]){_SECRET}$|(?:api|access)key$", re.IGNORECASE)
_SPECIAL = re.compile(
    r"^(?:eos|bos|pad|unk|cls|sep|mask|boi|eoi|image|audio|video|eot|end_of_turn)_token$", re.IGNORECASE
)
"""Names of special tokens of a vocabulary, which are not secrets."""
_ASSIGNED = re.compile(
    rf"""(?P<name>\b\w*{_SECRET})(?P<sign>["']?\s*[:=]\s*["']?)(?P<value>[^"',}}\s]+)""", re.IGNORECASE
)
_SHORTEST = 8
"""Least length of values of environment variables that are searched for: shorter ones occur by chance."""


def is_secret(name: str) -> bool:
    """Whether a field of this name holds a secret."""
    return bool(_NAME.search(name)) and not _SPECIAL.match(name)


def without_secrets(value: Any) -> Any:
    """A copy of nested settings without the fields that hold secrets, at any depth.

    In text, the value of an environment variable named like a secret is replaced by ``***``.
    """
    return _without(value, _known())


def _without(value: Any, known: list[str]) -> Any:
    if isinstance(value, Mapping):
        return {
            name: _without(item, known)
            for name, item in value.items()
            if not (isinstance(name, str) and is_secret(name) and isinstance(item, str) and item)
        }
    if isinstance(value, list | tuple):
        items = [_without(item, known) for item in value]
        return items if isinstance(value, list) else tuple(items)
    return _without_known(value, known) if type(value) is str else value


def hidden_in_command(words: list[str]) -> list[str]:
    """The words of a command with ``***`` for every secret: of a flag, within JSON, or known from the environment."""
    out: list[str] = []
    known = _known()
    for word in words:
        if out and out[-1].startswith("--") and "=" not in out[-1] and is_secret(out[-1][2:].replace("-", "_")):
            out.append(HIDDEN)
        else:
            out.append(_without_known(_ASSIGNED.sub(_assigned, word), known))
    return out


def _assigned(match: re.Match[str]) -> str:
    name = match["name"].replace("-", "_")
    return match[0] if not is_secret(name) else f"{match['name']}{match['sign']}{HIDDEN}"


def _known() -> list[str]:
    """Values of environment variables that are named like secrets."""
    return [value for name, value in os.environ.items() if len(value) >= _SHORTEST and is_secret(name)]


def _without_known(text: str, known: list[str]) -> str:
    for value in known:
        text = text.replace(value, HIDDEN)
    return text
