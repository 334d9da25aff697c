"""How a measure of an evaluation is shown: its name, digits and direction, whichever command measured it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from uncertune.report.page import Column

_SHARES = ("acc", "exact_match", "accuracy", "ece", "f1", "em")  # shown as percentages, also as parts of a name
_DIGITS = {"kl": 4}
_NAMES = {  # of lm-eval's metrics, shorter
    "exact_match,strict-match": "strict",
    "exact_match,flexible-extract": "flexible",
    "prompt_level_strict_acc": "prompt, strict",
    "prompt_level_loose_acc": "prompt, loose",
    "inst_level_strict_acc": "instruction, strict",
    "inst_level_loose_acc": "instruction, loose",
    "kl": "KL from base",
    "ece": "ECE",
}


def headline(result: Mapping[str, Any]) -> list[str]:
    """The metrics of a result that a table shows: of a group its own where it has some, never counts."""
    names = [name for name in result["metrics"] if name != "tokens"]
    return [name for name in names if "/" not in name] or names


def metric_column(result: Mapping[str, Any], metric: str) -> Column:
    """The column of one metric of a result, named by task and metric."""
    better = (result.get("higher_is_better") or {}).get(metric)
    direction = None if better is None else "higher" if better else "lower"
    words = re.split(r"[,_/]", metric)
    percent = any(word in _SHARES for word in words) or metric.startswith("exact_match")
    digits = 1 if percent else _DIGITS.get(metric, 3)
    key, label = f"{result['task']} {metric}", f"{result['task']} {metric_name(metric)}"
    return Column(key, label, direction, digits, percent=percent)  # type: ignore[arg-type]


def metric_name(metric: str) -> str:
    """A metric's short name."""
    return _NAMES.get(metric, metric)
