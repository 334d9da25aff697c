"""Output of a training run on the terminal: a table with one row per logged step, evaluations, and a final summary.

Everything goes to stderr as plain lines, so a file or a CI log looks like the screen. During an evaluation, a terminal
shows a temporary progress bar, and a file gets a line a minute.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from transformers import PrinterCallback, ProgressCallback, TrainerCallback

from uncertune.runs import notes
from uncertune.runs.notes import columns, duration, progress

OTHERS = ("objective", "entropy")
UNKNOWN_WIDTH = 120
"""Columns of a line if stderr is not a terminal."""


def number(value: float | None) -> str:
    """Four decimals, or scientific notation for very small numbers."""
    if value is None or not math.isfinite(value):
        return "–"
    return f"{value:.4f}" if value == 0 or 1e-3 <= abs(value) < 1e4 else f"{value:.1e}"


def percent(value: float) -> str:
    return f"{100 * value:.1f}%"


@dataclass(frozen=True)
class Cell:
    """A column of the table, shown where the log has ``key``."""

    key: str
    head: str
    text: Callable[[Any], str]
    rank: int
    """Columns of high rank are left out first on a narrow terminal."""
    least: int = 8

    @property
    def width(self) -> int:
        return max(len(self.head), self.least)


CELLS = (
    Cell("progress", "step", str, 0, 4),
    Cell("epoch", "epoch", lambda value: f"{value:.2f}", 14, 5),
    Cell("loss", "loss", number, 1),
    Cell("nll_selected", "selected", number, 3),
    Cell("nll_unselected", "others", number, 5),
    Cell("selection_threshold", "threshold", number, 6),
    Cell("selected_fraction", "share", percent, 9, 6),
    Cell("anchor_kl", "anchor KL", number, 4),
    Cell("kl", "KL", number, 4),
    Cell("clipped_fraction", "clipped", percent, 7, 6),
    Cell("entropy", "entropy", number, 8),
    Cell("mean_token_accuracy", "accuracy", percent, 10, 6),
    Cell("learning_rate", "lr", lambda value: f"{value:.1e}", 11, 7),
    Cell("grad_norm", "gradient", lambda value: number(value)[:6] if value < 100 else f"{value:.0f}", 12),
    Cell("speed", "tokens/s", lambda value: f"{value:,.0f}" if value >= 10 else f"{value:.1f}", 13, 6),
    Cell("left", "left", duration, 2, 7),
)


def fitting(names: Mapping[str, Any], width: int, first: int) -> tuple[Cell, ...]:
    """The columns of those names that fit into ``width``, in their order; the first takes ``first`` characters."""
    kept: list[Cell] = []
    used = 0
    for cell in sorted((one for one in CELLS if one.key in names), key=lambda one: one.rank):
        needs = 2 + (first if cell.key == "progress" else cell.width)
        if used + needs > width and kept:
            break
        kept.append(cell)
        used += needs
    return tuple(one for one in CELLS if one in kept)


class Console(TrainerCallback):
    """The table of one run, which replaces transformers' progress bar and dictionaries."""

    def __init__(self, trainer: Any) -> None:
        self._trainer = trainer
        self._cells: tuple[Cell, ...] = ()
        self._first = 4
        self._bar: Any = None
        self._start = self._evaluating = 0.0
        self._from_step = self._from_tokens = 0
        self._last: tuple[float, int] = (0.0, 0)

    # ---- hooks

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._cells, self._first = (), max(4, 2 * len(str(state.max_steps)) + 1)
        self._start, self._evaluating = time.monotonic(), 0.0
        self._from_step, self._from_tokens = state.global_step, self._trainer._total_train_tokens
        self._last = (0.0, self._from_tokens)
        parameters = [(one.numel(), one.requires_grad) for one in self._trainer.model.parameters()]
        trained = sum(count for count, is_trained in parameters if is_trained)
        of = f"{_millions(trained)} of {_millions(sum(count for count, _ in parameters))}"
        rows = self._trainer._rows_of_a_batch * args.gradient_accumulation_steps
        self._say(state, f"{_steps(state.max_steps)} of up to {rows} rows; {of} parameters are trained")

    def on_prediction_step(self, args: Any, state: Any, control: Any, eval_dataloader: Any = None, **_: Any) -> None:
        if not (state.is_world_process_zero and hasattr(eval_dataloader, "__len__")):
            return
        if self._bar is None:
            self._bar = progress(len(eval_dataloader), "evaluation", "batches", leave=False)
        self._bar.update(1)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        logs = logs or {}
        if "train_runtime" in logs:
            self._close(state, logs)
        elif any(name.startswith("eval_") for name in logs):
            self._evaluation(state, logs)
        elif "loss" in logs:
            self._step(state, logs)

    # ---- lines

    def _say(self, state: Any, line: str) -> None:
        if not notes.SHARED and state.is_world_process_zero:
            print(line.rstrip(), file=sys.stderr, flush=True)

    def _step(self, state: Any, logs: Mapping[str, Any]) -> None:
        now = time.monotonic() - self._start - self._evaluating
        seconds, tokens = self._last
        counted = int(logs.get("num_tokens", tokens))
        values = {name: value for name, value in logs.items() if value is not None}
        values["progress"] = f"{state.global_step}/{state.max_steps}"
        values["speed"] = (counted - tokens) / max(now - seconds, 1e-9)
        done = max(state.global_step - self._from_step, 1)
        values["left"] = now / done * (state.max_steps - state.global_step)
        self._last = (now, counted)
        if not self._cells:
            self._cells = fitting(values, _width(), self._first)
            self._say(state, self._row([one.head for one in self._cells]))
        cells = [one.text(values[one.key]) if one.key in values else "–" for one in self._cells]
        self._say(state, self._row(cells))

    def _row(self, cells: Sequence[str]) -> str:
        widths = [self._first if one.key == "progress" else one.width for one in self._cells]
        return "  ".join(text.rjust(width) for text, width in zip(cells, widths, strict=True))

    def _evaluation(self, state: Any, logs: Mapping[str, Any]) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None
        place = f"{state.global_step}/{state.max_steps}".rjust(self._first)
        for prefix in _prefixes(logs):
            seconds = float(logs.get(f"{prefix}_runtime", 0.0))
            self._evaluating += seconds
            parts = [f"loss {number(logs[f'{prefix}_loss'])}"]
            best = min(_losses(state.log_history, prefix), default=None)
            if best is not None and best[1] == state.global_step and best[0] == logs[f"{prefix}_loss"]:
                parts[0] += " (best so far)"
            if f"{prefix}_mean_token_accuracy" in logs:
                parts.append(f"accuracy {percent(logs[f'{prefix}_mean_token_accuracy'])}")
            parts += [f"{key} {number(logs[name])}" for key in OTHERS if (name := f"{prefix}_{key}") in logs]
            head = f"{place}  {_named(prefix)}: "
            while len(parts) > 1 and len(head + ", ".join(parts)) > _width():
                parts.pop()
            self._say(state, head + ", ".join(parts))

    def _close(self, state: Any, logs: Mapping[str, Any]) -> None:
        seconds = float(logs["train_runtime"])
        evaluating = sum(float(row.get("eval_runtime", 0)) for row in state.log_history)
        tokens = self._trainer._total_train_tokens
        speed = f"{tokens / max(seconds - evaluating, 1e-9):,.1f} tokens/s in training"
        lines = [f"done: {_steps(state.global_step)}, {tokens:,} tokens in {duration(seconds)} ({speed})"]
        for prefix in dict.fromkeys(one for row in state.log_history for one in _prefixes(row)):
            losses = _losses(state.log_history, prefix)
            (best, at), (last, end) = min(losses), losses[-1]
            lines.append(f"{_named(prefix)}: best loss {number(best)} at step {at}, last {number(last)} at step {end}")
        for line in lines:
            self._say(state, line)


def take_over(trainer: Any) -> None:
    """Replace transformers' output of ``trainer`` by the table; a notebook keeps its own."""
    theirs = [trainer.pop_callback(one) for one in (ProgressCallback, PrinterCallback)]
    if any(one is not None for one in theirs):
        trainer.add_callback(Console(trainer))


def _prefixes(logs: Mapping[str, Any]) -> list[str]:
    """``eval``, or ``eval_NAME`` of each evaluation data set, in a record."""
    return [name.removesuffix("_loss") for name in logs if name.startswith("eval_") and name.endswith("_loss")]


def _named(prefix: str) -> str:
    return f"evaluation {prefix.removeprefix('eval')[1:]}".strip()


def _losses(history: Sequence[Mapping[str, Any]], prefix: str) -> list[tuple[float, int]]:
    """Loss and step of every evaluation."""
    return [(row[f"{prefix}_loss"], row["step"]) for row in history if f"{prefix}_loss" in row]


def _steps(count: int) -> str:
    return f"{count} step{'' if count == 1 else 's'}"


def _millions(count: int) -> str:
    return f"{count / 1e6:,.1f}M" if count >= 1e5 else f"{count:,}"


def _width() -> int:
    return columns() or UNKNOWN_WIDTH
