"""A check of a run before training: its rows, the tokens with loss, its steps, and an estimate of memory.

``look`` builds the trainer of the run itself, on a temporary folder, so that everything a run refuses is refused here.
"""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, groupby
from typing import Any, cast

import datasets
import torch
from datasets import Dataset

from uncertune.errors import UserError
from uncertune.fused.projection import logits_bytes
from uncertune.models.head import head_shape
from uncertune.objectives import IGNORED
from uncertune.training import dataset
from uncertune.training.holdout import held_out
from uncertune.training.pipeline import Job, build_trainer, check_job
from uncertune.training.rehearsal import rehearse
from uncertune.training.trainer import UncertuneTrainer

EXAMPLES = 2
SHOWN_TOKENS = 1000
"""Number of tokens shown of an example."""

Piece = tuple[str, bool]
"""Decoded text, and whether its tokens have loss."""


@dataclass(frozen=True)
class Memory:
    """Estimated bytes on one device. ``inputs``: those of each layer, as gradient checkpointing keeps them."""

    parameters: int
    training: int
    """Gradients of the trained parameters, and two moments of the optimizer."""
    inputs: int
    logits: int

    @property
    def total(self) -> int:
        return self.parameters + self.training + self.inputs + self.logits


@dataclass(frozen=True)
class Findings:
    """The result of ``look``. Lengths and tokens are of the training data."""

    rows: int
    cut: int
    """Rows longer than ``max_length``, which lose tokens."""
    left_out: int
    """Rows without a token that has loss."""
    longest: int
    """Tokens of the longest row before truncation."""
    tokens: int
    """Tokens that are trained on in an epoch, prompts included."""
    loss_tokens: int
    """The tokens with loss among them."""
    sequences: int
    """Rows after truncation and packing."""
    steps: int
    trained: int
    """Trained parameters."""
    parameters: int
    memory: Memory
    checkpointing: bool
    examples: tuple[tuple[Piece, ...], ...]


class _Recording(UncertuneTrainer):
    """Stores the training rows before truncation and packing."""

    uncut: Any = None

    def _prepare_dataset(
        self, rows: Any, processing_class: Any, args: Any, packing: bool, formatting_func: Any, dataset_name: str
    ) -> Any:
        if dataset_name == dataset.TRAIN and isinstance(rows, Dataset):
            whole = copy.copy(args)
            whole.max_length, whole.shuffle_dataset = None, False
            self.uncut = super()._prepare_dataset(rows, processing_class, whole, False, formatting_func, dataset_name)
        return super()._prepare_dataset(rows, processing_class, args, packing, formatting_func, dataset_name)


def look(job: Job, *, overwrite: bool = False) -> Findings:
    """Check everything that needs no training, and count tokens. Writes nothing into the run's folder.

    The base model takes the place of a teacher or reference that the run trains first. Raises UserError for everything
    that the run would refuse before its first step, and for streamed data, which cannot be counted.
    """
    if not isinstance(job.train_dataset, Dataset):
        raise UserError("dataset_streaming: check counts all rows, which a stream does not have: set it to false")
    job = check_job(job, overwrite=overwrite)
    caching = datasets.is_caching_enabled()
    datasets.disable_caching()
    try:
        with tempfile.TemporaryDirectory() as folder:
            trainer = cast(_Recording, build_trainer(_standing_in(job, folder), _Recording))
            rehearse(trainer)
            return _findings(trainer)
    finally:
        if caching:
            datasets.enable_caching()


def _standing_in(job: Job, folder: str) -> Job:
    """The job in a temporary folder, with the base model in place of references that are not trained yet."""
    config = copy.copy(job.config)
    config.output_dir, config.push_to_hub = folder, False
    config.teacher_cache, config.teacher_cache_dir = "none", None
    if config.rho_reference == "auto":
        rest, _ = held_out(job.train_dataset, config.seed)
        job, config.rho_reference = replace(job, train_dataset=rest), "base"
    if config.teacher == "auto":
        config.teacher = "base" if config.teacher_members == 1 else ["base"] * config.teacher_members
    return replace(job, config=config)


def _findings(trainer: _Recording) -> Findings:
    args, rows, uncut = trainer.args, trainer.train_dataset, trainer.uncut
    prepared = uncut is None
    lengths = [len(ids) for ids in (rows if prepared else uncut)["input_ids"]]
    splits = args.packing and args.packing_strategy != "bfd"
    limit = None if splits or prepared else args.max_length
    carries = [_carries(row) for row in rows]
    trained = [one for one in trainer.model.parameters() if one.requires_grad]
    *_, steps = trainer.set_initial_training_values(args, trainer.get_train_dataloader())
    return Findings(
        rows=len(lengths),
        cut=sum(limit is not None and length > limit for length in lengths),
        left_out=0 if args.packing else len(lengths) - len(rows),
        longest=max(lengths),
        tokens=sum(map(len, carries)),
        loss_tokens=sum(map(sum, carries)),
        sequences=len(rows),
        steps=steps,
        trained=sum(one.numel() for one in trained),
        parameters=sum(one.numel() for one in trainer.model.parameters()),
        memory=_memory(trainer, trained, max(map(len, carries))),
        checkpointing=bool(args.gradient_checkpointing),
        examples=tuple(
            tuple(_pieces(trainer.processing_class, rows[number]["input_ids"], carries[number]))
            for number in range(min(EXAMPLES, len(rows)))
        ),
    )


def _carries(row: Any) -> list[bool]:
    """The predicted tokens of a row: those with a label, except for the first of each packed document."""
    starts = {0, *accumulate(row.get("seq_lengths") or ())}
    return [label != IGNORED and place not in starts for place, label in enumerate(row["labels"])]


def _pieces(tokenizer: Any, ids: Sequence[int], carries: Sequence[bool]) -> Iterator[Piece]:
    """The text, split into runs of tokens with and without loss."""
    shown = list(zip(ids, carries, strict=True))[:SHOWN_TOKENS]
    for trained, run in groupby(shown, key=lambda pair: pair[1]):
        yield tokenizer.decode([token for token, _ in run], clean_up_tokenization_spaces=False), trained
    if len(ids) > SHOWN_TOKENS:
        yield f" … {len(ids) - SHOWN_TOKENS} more tokens", False


def _memory(trainer: _Recording, trained: Sequence[torch.Tensor], longest: int) -> Memory:
    args, model = trainer.args, trainer.model
    config = model.config.get_text_config()
    tokens = longest * args.per_device_train_batch_size
    vocabulary, width = head_shape(model)
    half = args.bf16 or args.fp16
    item = 2 if half else max(one.element_size() for one in trained)
    return Memory(
        parameters=sum(one.numel() * one.element_size() for one in model.parameters()),
        training=3 * sum(one.numel() * one.element_size() for one in trained),
        inputs=config.num_hidden_layers * tokens * width * item,
        logits=min(logits_bytes(args.device), 4 * tokens * vocabulary),
    )
