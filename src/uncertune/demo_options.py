"""The options of ``uncertune demo``, without a heavy import."""

from __future__ import annotations

import argparse
from dataclasses import dataclass, fields

from uncertune import options
from uncertune.errors import UserError


@dataclass(frozen=True)
class DemoOptions:
    """What ``uncertune demo`` can be told. The defaults take about eight minutes on two processor cores."""

    output_dir: str = "demo"
    model: str = "smollm2-135m"
    train_problems: int = 200
    batch_size: int = 8
    learning_rate: float = 1e-4
    selection_fraction: float = 0.25
    test_problems: int = 32
    general_prompts: int = 16
    max_new_tokens: int = 80
    seed: int = 0
    overwrite: bool = False

    @property
    def command(self) -> str:
        """As it would be typed: the folder, and what differs from the defaults."""
        known = {one.name: one.default for one in fields(self) if one.name not in ("output_dir", "overwrite")}
        chosen = [
            f"--{name} {getattr(self, name)}" for name, default in known.items() if getattr(self, name) != default
        ]
        return " ".join(["uncertune demo", *chosen, f"--output_dir {self.output_dir}"])


HELP = {
    "output_dir": "folder of the runs, the table and the page",
    "model": "hub id, folder, .gguf file, or smollm2-135m",
    "train_problems": "word problems to train on",
    "batch_size": "problems in an optimizer step",
    "learning_rate": "peak of the cosine schedule",
    "selection_fraction": "fraction of tokens trained on with cross-entropy",
    "test_problems": "held-out problems to answer",
    "general_prompts": "general prompts on which the divergence from the base is measured",
    "max_new_tokens": "longest answer, in tokens",
    "seed": "of data, training and order",
    "overwrite": "start anew, deleting the runs in output_dir, instead of going on",
}


def parser() -> argparse.ArgumentParser:
    """The parser of ``uncertune demo``."""
    return options.parser(
        DemoOptions,
        "uncertune demo",
        "Fine-tune a small language model three ways on arithmetic word problems, from the same start and "
        "on the same data: MLE, masked MLE, and masked MLE + distillation. Then measure what each learned (held-out "
        "problems) and what each forgot (the base model's other abilities), print a table and write report.html. "
        "Started again, it goes on where it stopped.",
        HELP,
    )


def parse(arguments: list[str]) -> DemoOptions:
    """Options from flags, over those of ``--config``. Raises UserError, one line, for what cannot be used."""
    out = options.parse(DemoOptions, parser(), arguments)
    if not 0 < out.selection_fraction <= 1:
        raise UserError(f"selection_fraction must be in (0, 1], got {out.selection_fraction}")
    if not out.learning_rate > 0:
        raise UserError(f"learning_rate must be above 0, got {out.learning_rate}")
    options.check_counts(out, "train_problems", "batch_size", "test_problems", "general_prompts", "max_new_tokens")
    return out
