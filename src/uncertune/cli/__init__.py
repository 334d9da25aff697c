"""The command line: one file per command. Heavy imports happen inside the command that needs them."""

from uncertune.cli.main import main

__all__ = ["main"]
