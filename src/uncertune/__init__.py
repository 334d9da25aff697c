"""Uncertainty-aware fine-tuning of language models: cross-entropy on the tokens that a model finds hardest, and
distillation from a fine-tuned copy of itself on all the others."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from uncertune.training.config import UncertuneConfig
    from uncertune.training.trainer import UncertuneTrainer

__all__ = ["UncertuneConfig", "UncertuneTrainer"]
_HOMES = {"UncertuneConfig": "uncertune.training.config", "UncertuneTrainer": "uncertune.training.trainer"}


def __getattr__(name: str) -> Any:
    """Import the heavy names on first use, so that ``import uncertune`` is fast."""
    if name in _HOMES:
        import importlib

        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'uncertune' has no attribute {name!r}")
