"""A few texts scored at several moments of a run (Fig. 4), for the run page and the token page.

A line of ``probe.jsonl`` has a step and, for each document, its tokens' texts, losses and entropies (nats; null for the
first), which are response, and which would be selected: the top fraction by loss of the response tokens of all texts.
With ``probe_samples`` it also has epistemic, aleatoric and total uncertainty by Monte-Carlo dropout.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback

from uncertune.fused import linear_token_stats
from uncertune.runs.checkpoints import cut_to_checkpoint
from uncertune.runs.records import PROBE
from uncertune.selection import select
from uncertune.teachers.adapter import frozen_rows
from uncertune.training.batch import IGNORED
from uncertune.training.runlog import cut_metrics
from uncertune.uncertainty import token_uncertainty

DOCUMENTS = 4
TOKENS = 400


class Probe(TrainerCallback):
    """Scores the first documents of the evaluation data, or of the training data without one: at the start, in the
    middle and at the end of a run, or at the start, every ``probe_steps`` steps and at the end."""

    def __init__(self, trainer: Any) -> None:
        self.trainer = trainer
        self.path = Path(trainer.args.output_dir) / PROBE

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == 0:
            self.path.unlink(missing_ok=True)
            self._score(0)
        elif self.trainer.accelerator.is_main_process and not cut_to_checkpoint(self.path, state.global_step):
            cut_metrics(self.path, state.global_step)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        step, last = state.global_step, state.max_steps
        due = step == last // 2 if args.probe_steps is None else step % args.probe_steps == 0
        if due or step == last:
            self._score(step)

    def _score(self, step: int) -> None:
        """Score the texts. Every rank runs the forward pass, which may be sharded; the first rank writes."""
        documents = [self._document(row) for row in self._rows()]
        if not documents:  # every prompt is longer than the scored part
            return
        answers = torch.cat([torch.tensor(d["loss"][1:])[torch.tensor(d["response"][1:])] for d in documents])
        chosen = iter(select(answers, self.trainer.args.selection_fraction).tolist())
        for document in documents:
            document["selected"] = [bool(response and next(chosen)) for response in document["response"]]
        if self.trainer.accelerator.is_main_process:
            with open(self.path, "a", encoding="utf-8") as file:
                file.write(json.dumps({"step": step, "documents": documents}) + "\n")

    def _rows(self) -> list[dict[str, Any]]:
        evaluation = self.trainer.eval_dataset
        if isinstance(evaluation, dict):
            evaluation = next(iter(evaluation.values()), None)
        source = self.trainer.train_dataset if evaluation is None else evaluation
        rows = []
        for row in source:
            length = row["seq_lengths"][0] if "seq_lengths" in row else len(row["input_ids"])
            length = min(length, TOKENS)
            labels = [IGNORED, *row["labels"][1:length]]
            if any(label != IGNORED for label in labels):
                rows.append({"input_ids": row["input_ids"][:length], "labels": labels})
            if len(rows) == DOCUMENTS:
                break
        return rows

    def _document(self, row: dict[str, Any]) -> dict[str, Any]:
        trainer = self.trainer
        batch = trainer._prepare_inputs(trainer.data_collator([row]))
        del batch["labels"]
        ids = batch["input_ids"]
        mask = torch.zeros_like(ids[:, 1:], dtype=torch.bool)
        mask[:, : len(row["input_ids"]) - 1] = True
        rows = frozen_rows(trainer.model_wrapped, {**batch, "use_cache": False}, mask)
        stats = linear_token_stats(rows.hidden, rows.head, ids[:, 1:][mask])
        values = {"loss": stats.loss, "entropy": stats.entropy, **self._uncertainty(row)}
        return {
            "text": [trainer.processing_class.decode([token]) for token in row["input_ids"]],
            **{name: [None, *(float(f"{one:.5g}") for one in column.tolist())] for name, column in values.items()},
            "response": [label != IGNORED for label in row["labels"]],
        }

    def _uncertainty(self, row: dict[str, Any]) -> dict[str, torch.Tensor]:
        """Of every token but the first, prompt included."""
        args = self.trainer.args
        if not args.probe_samples:
            return {}
        ids = torch.tensor([row["input_ids"]])
        found = token_uncertainty(
            self.trainer.model_wrapped, ids, ids, samples=args.probe_samples, rate=args.bald_rate, seed=args.seed
        )
        return {name: getattr(found, name) for name in ("epistemic", "aleatoric", "total")}
