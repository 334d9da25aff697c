"""The same few texts, scored at the start, in the middle and at the end of training (Fig. 4): data for the run page.

A line of ``probe.jsonl`` holds a step and, for each document, its tokens' texts, losses (nats; null for the first),
which are response and which would be selected: the top fraction by loss of the response tokens of all the texts.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback

from uncertune.fused import linear_token_stats
from uncertune.selection import select
from uncertune.teachers.adapter import frozen_rows
from uncertune.training.batch import IGNORED
from uncertune.training.checkpoints import write_atomically

PROBE = "probe.jsonl"
DOCUMENTS = 4
TOKENS = 400


class Probe(TrainerCallback):
    """Scores the first documents of the evaluation data, or else of the training data, three times in a run."""

    def __init__(self, trainer: Any) -> None:
        self.trainer = trainer
        self.path = Path(trainer.args.output_dir) / PROBE

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == 0:
            self.path.unlink(missing_ok=True)
            self._score(0)
        elif self.path.is_file():
            lines = [line for line in self.path.read_text(encoding="utf-8").splitlines() if line.endswith("}")]
            kept = [line + "\n" for line in lines if json.loads(line)["step"] <= state.global_step]
            if self.trainer.accelerator.is_main_process:
                write_atomically(self.path, "".join(kept))

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step in (state.max_steps // 2, state.max_steps):
            self._score(state.global_step)

    def _score(self, step: int) -> None:
        """Every rank runs the forward pass, which may be sharded; the first one writes."""
        documents = [self._document(row) for row in self._rows()]
        if not documents:  # every prompt is longer than what is scored
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
        stats = linear_token_stats(rows.hidden, rows.head, ids[:, 1:][mask], **rows.options)
        return {
            "text": [trainer.processing_class.decode([token]) for token in row["input_ids"]],
            "loss": [None, *[round(value, 4) for value in stats.loss.tolist()]],
            "response": [label != IGNORED for label in row["labels"]],
        }
