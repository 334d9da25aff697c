"""``python -m benchmarks.running``: how near the threshold of scope ``running`` comes to exact selection over the step.

One run of masked MLE with LoRA and dropout. Each step is also selected exactly, as scope ``batch`` does, in a pass of
its own with dropout off. The scores that the training forwards gave are then selected by moving averages of several
decays: the selected fraction, and the overlap of the masks with the exact ones (tokens in both / tokens in either).
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from peft import LoraConfig
from torch import Tensor
from transformers import PrinterCallback

from benchmarks import tables
from uncertune import UncertuneConfig, UncertuneTrainer
from uncertune.data.sources import load
from uncertune.selection import LEVELS, RunningThreshold, last_selected, select
from uncertune.selection.select import Level
from uncertune.selection.threshold import DECAY

DECAYS = (0.0, 0.5, 0.8, 0.9, 0.95)


@dataclass(frozen=True)
class Seen:
    """One step: scores (T,) of an exact pass and, but for the first step, of the training forwards; (T,) documents."""

    exact: Tensor
    document: Tensor
    training: Tensor | None


class Watched(UncertuneTrainer):
    """Keeps what every step was selected from, and what it would be selected from exactly."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.seen: list[Seen] = []

    def get_batch_samples(self, *args: Any) -> Any:
        batches, count = super().get_batch_samples(*args)
        record, tokens = self._step, [self._tokens(self._prepare_inputs(batch)) for batch in batches]
        aside = replace(record, parts={})  # what is scored here is no part of the run's records
        scores = torch.cat([self.selector.score(one, aside)[0].cpu() for one in tokens])
        offset, document = 0, []
        for one in tokens:
            document.append(one.documents.index + offset)
            offset += one.documents.count
        self._exact = scores, torch.cat(document)
        return batches, count

    def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
        record, kept = self._step, self.selector.running._scores
        loss = super().compute_loss(*args, **kwargs)
        if record.complete:
            self.seen.append(Seen(*self._exact, None if record.exact else torch.cat(kept)))
        return loss


def nearness(steps: Sequence[Seen], fraction: float, level: Level, decay: float) -> Iterator[tuple[float, float]]:
    """Of every step but the first: the selected fraction of its tokens, and the overlap with the exact mask."""
    running = RunningThreshold(fraction, level, decay=decay)
    running.update(_exact(steps[0].exact, steps[0], fraction, level)[1])
    for step in steps[1:]:
        assert step.training is not None
        mask, exact = running.mask(step.training, step.document), _exact(step.exact, step, fraction, level)[0]
        yield float(mask.float().mean()), float((mask & exact).sum() / (mask | exact).sum())
        running.update(_exact(step.training, step, fraction, level)[1])


def _exact(scores: Tensor, step: Seen, fraction: float, level: Level) -> tuple[Tensor, float]:
    mask = select(scores, fraction, level=level, document=step.document)
    return mask, last_selected(scores, mask, level=level, document=step.document)


def watch(args: argparse.Namespace, folder: str) -> list[Seen]:
    """Train, and return what every step saw."""
    settings = UncertuneConfig(
        folder,
        objective="masked_mle",
        selection_scope="running",
        selection_fraction=args.fraction,
        save_selection=False,
        max_steps=args.steps,
        per_device_train_batch_size=args.batch_size // args.accumulation,
        gradient_accumulation_steps=args.accumulation,
        learning_rate=args.learning_rate,
        assistant_only_loss=True,
        bf16=True,
        use_cpu=not torch.cuda.is_available(),
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        logging_steps=1000,
    )
    lora = LoraConfig(
        r=32, lora_alpha=64, lora_dropout=args.lora_dropout, target_modules="all-linear", task_type="CAUSAL_LM"
    )
    data = load(args.data, max_samples=args.steps * args.batch_size)
    trainer = Watched(args.model, settings, train_dataset=data, peft_config=lora)
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    return trainer.seen


def main(argv: Sequence[str] | None = None) -> None:
    args = _parse(argv)
    with tempfile.TemporaryDirectory() as folder:
        steps = watch(args, folder)
    rows = []
    for level in LEVELS:
        for decay in DECAYS:
            fractions, overlaps = zip(*nearness(steps, args.fraction, level, decay), strict=True)
            rows.append(
                {
                    "level": level,
                    "decay": f"{decay}{' (ours)' if decay == DECAY else ''}",
                    "fraction": f"{statistics.mean(fractions):.3f} ± {statistics.stdev(fractions):.3f}",
                    "overlap": f"{statistics.mean(overlaps):.3f}",
                    "lowest": f"{min(overlaps):.3f}",
                }
            )
    print("python -m benchmarks.running " + " ".join(sys.argv[1:] if argv is None else argv))
    print(f"{tables.versions()}; {len(steps)} steps of {args.batch_size} rows, q = {args.fraction}\n")
    print(tables.aligned(rows))


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.running", description=__doc__)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--data", default="gsm8k")
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--batch_size", type=int, default=16, help="rows of an optimizer step")
    parser.add_argument("--accumulation", type=int, default=4)
    parser.add_argument("--fraction", type=float, default=0.25)
    parser.add_argument("--learning_rate", type=float, default=1e-4)
    parser.add_argument("--lora_dropout", type=float, default=0.05)
    args = parser.parse_args(argv)
    if args.steps < 3:
        parser.error(f"--steps {args.steps}: give at least 3, the first one is exact")
    if args.batch_size % args.accumulation:
        parser.error(f"--accumulation {args.accumulation}: give a number that divides --batch_size {args.batch_size}")
    return args


if __name__ == "__main__":
    main()
