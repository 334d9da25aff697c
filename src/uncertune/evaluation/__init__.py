"""Evaluation: what a trained model gained in distribution, and what it lost elsewhere."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from uncertune.statistics.winrate import WinRate, win_rate

__all__ = ["WinRate", "win_rate"]


def __getattr__(name: str) -> Any:
    """SciPy is imported when a win rate is asked for: the help of a command does not need it."""
    if name in __all__:
        from uncertune.statistics import winrate

        return getattr(winrate, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
