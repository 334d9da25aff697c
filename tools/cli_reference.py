"""``python -m tools.cli_reference``: writes docs/reference/cli.md from the help texts of the commands."""

from __future__ import annotations

from pathlib import Path

from uncertune.cli import train
from uncertune.cli.main import COMMANDS, command_of

PAGE = Path(__file__).parent.parent / "docs" / "reference" / "cli.md"
WIDTH = 100


def page() -> str:
    """The page: every command with its options, as ``--help`` prints them at 100 columns."""
    lines = [
        "# Commands",
        "",
        "Every command takes its options as flags and from a YAML file with `--config FILE`; flags win. `none` or",
        "`null` clears a field that may be unset. A mistake ends with one line and status 2, anything unforeseen with",
        "status 1 and a file with the traceback, which `--debug` or `UNCERTUNE_DEBUG=1` shows.",
        "",
        "This page is written by `python -m tools.cli_reference`.",
    ]
    for name in COMMANDS:
        lines += ["", f"## uncertune {name}", "", "```text", _help(name), "```"]
    return "\n".join(lines) + "\n"


def _help(name: str) -> str:
    if name == "train":
        return train.help_page(everything=True, width=WIDTH)
    command = command_of(name)
    text: str = command.help(width=WIDTH)
    return text


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
