"""``uncertune recipes``: the recipes that come with the package, and ``--config`` by their names."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from uncertune.cli.options import Command
from uncertune.settings import option
from uncertune.settings.files import RECIPES


@dataclass(frozen=True, kw_only=True)
class RecipeOptions:
    """Options of ``uncertune recipes``."""

    name: str | None = option(None, "print this recipe", positional=True, unset="list all")


def names() -> list[str]:
    """The names that ``--config`` takes: the recipe files without their extension."""
    files = (file for file in RECIPES.rglob("*.yaml") if file.parent.name != "accelerate")
    return sorted(file.relative_to(RECIPES).with_suffix("").as_posix() for file in files)


def call(given: RecipeOptions) -> None:
    """Print the list, or one recipe."""
    if given.name is None:
        print("\n".join(names()))
        return
    from uncertune.errors import UserError
    from uncertune.settings import near, shown

    if given.name not in names():
        hint = near(given.name, names()) or "`uncertune recipes` lists all"
        raise UserError(f"unknown recipe {shown(given.name)}: {hint}")
    print(Path(RECIPES / f"{given.name}.yaml").read_text(encoding="utf-8"), end="")


COMMAND = Command(
    "recipes",
    "list the recipes that come with the package, or print one",
    RecipeOptions,
    call,
    "List the recipes that come with the package, or print one. Each is a file for `uncertune train`, those of sweeps/ "
    "for `uncertune sweep`: give its name to --config.",
)
