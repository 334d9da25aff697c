"""Training forwards of all micro-batches before the selection, which replace a separate scoring pass.

With gradient checkpointing a forward stores only the inputs of the layers, and the backward recomputes the rest. So the
forwards of a step's micro-batches run first, up to the last hidden states, from which tokens are scored and selected;
then each micro-batch's loss and backward run. A step costs as much as plain checkpointed fine-tuning: one forward, one
recomputation, one backward. It needs memory for the layers' inputs of all micro-batches at once, about
``layers × positions × hidden size`` numbers per rank.

Shape legend: ``T`` response tokens of a micro-batch, ``D`` hidden size.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from uncertune.models import causal_lm
from uncertune.objectives import Head
from uncertune.runs.notes import note
from uncertune.training.batch import Tokens
from uncertune.training.devices import all_ranks

KEPT = "uncertune_kept_forward"
"""Key under which a micro-batch's ``KeptForward`` is stored in it."""


@dataclass
class KeptForward:
    """Hidden states (T, D) and auxiliary loss of a training forward, with their graph, for a single use."""

    hidden: Tensor
    head: Head
    aux_loss: Tensor | None
    _used: bool = False

    def take(self) -> tuple[Tensor, Tensor | None]:
        """Return hidden states and auxiliary loss, and release their graph."""
        assert not self._used, "the graph of a forward serves one backward"
        taken = self.hidden, self.aux_loss
        self.hidden, self.aux_loss, self._used = self.hidden.detach(), None, True
        return taken


class ForwardKeeper:
    """Training forwards of a step before its selection, and whether they are possible."""

    def __init__(self, trainer: Any, *, noisy: bool) -> None:
        args = trainer.args
        reentrant = (args.gradient_checkpointing_kwargs or {}).get("use_reentrant", False)
        sharded = trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled
        self._trainer, self._limit = trainer, args.selection_memory_gb
        self._possible = bool(
            args.gradient_checkpointing and not (reentrant or noisy or sharded or args.activation_offloading)
        )
        self._said: set[bool] = set()

    def fits(self, batches: Sequence[Mapping[str, Any]]) -> bool:
        """Whether the memory of the rank that needs most is within ``selection_memory_gb``."""
        if not (self._possible and self._limit):
            return False
        positions = sum(batch["input_ids"].numel() for batch in batches)
        need = max(all_ranks(positions * self._bytes_of_position)) / 1e9
        kept = need <= self._limit
        if kept not in self._said and self._trainer.accelerator.is_main_process:
            does = "runs a step's forwards before its selection" if kept else "scores in a separate forward pass"
            note(
                f"selection: {does}; the layer inputs of {len(batches)} micro-batches take about {need:.3g} GB "
                f"(selection_memory_gb={self._limit:g})"
            )
        self._said.add(kept)
        return kept

    @property
    def _bytes_of_position(self) -> int:
        lm = causal_lm(self._trainer.model)
        config = lm.config.get_text_config()
        return int(config.num_hidden_layers * config.hidden_size * next(lm.parameters()).element_size())

    def run(self, tokens: Tokens) -> KeptForward:
        """The training forward of a micro-batch up to its hidden states, without the DDP wrapper, which counts
        forwards."""
        kept: list[KeptForward] = []

        def keep(hidden: Tensor, head: Head, aux_loss: Tensor | None) -> dict[str, Tensor]:
            kept.append(KeptForward(hidden, head, aux_loss))
            return {}

        model = self._trainer.model
        model.train()
        with self._trainer.compute_loss_context_manager():
            model(**tokens.inputs, **tokens.response, head_fn=keep)
        return kept[0]
