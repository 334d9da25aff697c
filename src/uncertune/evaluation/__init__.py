"""Evaluation of trained models in and out of distribution: token measures, tasks of lm-eval, and answers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from uncertune.statistics.winrate import WinRate, win_rate

__all__ = ["WinRate", "win_rate"]


def __getattr__(name: str) -> Any:
    """Import SciPy only for a win rate, since the help of a command does not need it."""
    if name in __all__:
        from uncertune.statistics import winrate

        return getattr(winrate, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
