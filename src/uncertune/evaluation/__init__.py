"""Evaluation: what a trained model gained in distribution, and what it lost elsewhere."""

from uncertune.statistics.winrate import WinRate, win_rate

__all__ = ["WinRate", "win_rate"]
