"""Read a user's YAML file; whatever is wrong with it becomes one line that names the file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from uncertune.errors import UserError
from uncertune.settings.values import shown

RECIPES = Path(__file__).parent.parent / "recipes"
LARGEST = 2**20  # bytes
DEEPEST = 50
MOST_NODES = 50_000


class _Loader(yaml.SafeLoader):
    """YAML 1.1 without duplicate keys."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        seen: dict[Any, int] = {}
        for key_node, _ in node.value:
            if key_node.tag == "tag:yaml.org,2002:merge" or not isinstance(key_node, yaml.ScalarNode):
                continue
            line = key_node.start_mark.line + 1
            if key_node.value in seen:
                first = seen[key_node.value]
                raise UserError(f"{shown(key_node.value)} is set twice, in lines {first} and {line}: keep one of them")
            seen[key_node.value] = line
        return super().construct_mapping(node, deep)


def read_mapping(path: str | Path, what: str = "--config") -> dict[Any, Any]:
    """The mapping in a YAML file; an empty file is an empty mapping. ``what`` names the file's role in an error.

    If no such file exists, ``path`` may be the name of a recipe of the package (``uncertune recipes`` lists them).

    Raises UserError for a file that cannot be read or is larger than 1 MiB, and for YAML that is invalid, sets a key
    twice, is nested deeper than 50 levels or grows beyond 50,000 nodes by its aliases.
    """
    name = f"{what} {shown(str(path), 200)}"
    path = _recipe(path) or path
    try:
        with open(path, "rb") as file:
            content = file.read(LARGEST + 1)
        if len(content) > LARGEST:
            raise UserError(f"{name} is larger than 1 MiB: this file should hold settings only")
        values = _parsed(content.decode("utf-8-sig"))
    except UserError as error:
        raise error if str(error).startswith(name) else UserError(f"{name}: {error}") from None
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise UserError(f"{name} cannot be read: {reason}") from error
    except yaml.YAMLError as error:
        raise UserError(f"{name} is not valid YAML: {' '.join(str(error).split())}") from error
    except (ValueError, TypeError, OverflowError, RecursionError) as error:  # an invalid date or number
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"{name} holds a value that cannot be read: {reason}") from error
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise UserError(f"{name} must be a YAML mapping of field names to values")
    return values


def _recipe(name: str | Path) -> Path | None:
    """The file of a recipe, unless a file of that name exists."""
    text = str(name)
    if not text or "\0" in text or ".." in Path(text).parts or Path(text).is_absolute() or len(text) > 200:
        return None
    found = RECIPES / f"{text}.yaml"
    return found if not Path(text).exists() and found.is_file() else None


def _parsed(text: str) -> Any:
    depth = 0
    for event in yaml.parse(text, yaml.SafeLoader):
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > DEEPEST:
            raise UserError(f"it is nested more than {DEEPEST} levels deep: flatten it")
    node = yaml.compose(text, yaml.SafeLoader)
    if node is None:
        return None
    if _size(node, {}) > MOST_NODES:
        raise UserError(f"it holds more than {MOST_NODES} values, aliases included: shorten it")
    return yaml.load(text, _Loader)


def _size(node: Any, sizes: dict[int, float]) -> float:
    """The number of nodes from this one down, with aliases expanded; infinite for a node that contains itself."""
    if id(node) not in sizes:
        sizes[id(node)] = float("inf")
        if isinstance(node, yaml.MappingNode):
            inner = [one for pair in node.value for one in pair]
        else:
            inner = list(node.value) if isinstance(node, yaml.SequenceNode) else []
        sizes[id(node)] = 1 + sum(_size(one, sizes) for one in inner)
    return sizes[id(node)]
