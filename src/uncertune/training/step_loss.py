"""The loss of one micro-batch, computed from its hidden states inside the forward of the wrapped model.

It is computed there because the hooks of DDP, FSDP and DeepSpeed act on that forward.

Shape legend: ``T`` response tokens of the micro-batch, ``D`` hidden size.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from uncertune.fused import Scored, Swept, TokenStats, score_tokens, weighted_sweep
from uncertune.objectives import OBJECTIVES, Head, Targets
from uncertune.training import side_columns
from uncertune.training.batch import SELECTED, Tokens
from uncertune.training.references import Rows
from uncertune.training.step import StepRecord
from uncertune.training.weights import anchor_measures, targets_of


@dataclass(frozen=True)
class LossResult:
    """The results of a micro-batch's forward, detached."""

    loss: Tensor
    """The micro-batch's part of the step's loss, a scalar in full precision."""
    loss_T: Tensor
    """The loss of each token, in nats, undivided."""
    selected_T: Tensor | None
    stats: TokenStats | None
    """The student's statistics, if they were computed with the loss."""


@dataclass
class StepLoss:
    """The training loss as a function of hidden states (T, D), head and auxiliary loss; ``result`` after its one call.

    ``rows`` and ``extra_T`` come from passes of other models, which must run before the student's forward.
    """

    trainer: Any
    record: StepRecord
    batch: dict[str, Any]
    tokens: Tokens
    rows: Rows
    extra_T: Tensor | None
    result: LossResult | None = None

    def of_hidden(self, hidden: Tensor, head: Head, aux_loss: Tensor | None) -> dict[str, Tensor]:
        """The model takes this method and not the object: FSDP2 copies dataclasses among the arguments of a forward to
        cast their tensors, and a copy's ``result`` would be lost."""
        trainer, record = self.trainer, self.record
        scored, selected = self._mask(hidden, head)
        teacher, anchor = trainer.references.bound(self.rows, head)
        known = None if scored is None else scored.stats
        targets = targets_of(trainer.args, self.tokens, selected, teacher, anchor, known)
        swept = self._sweep(hidden, head, targets, scored)
        stats = known if scored is not None else swept.stats
        if anchor is not None:
            record.add(**anchor_measures(targets, swept))
        if stats is not None:
            record.add(**side_columns.measures(trainer.args, self.tokens, stats, anchor))
        loss = swept.loss.sum() / record.denominator * trainer.accelerator.num_processes
        if trainer.aux_loss_enabled:
            assert aux_loss is not None
            record.add(aux_loss=aux_loss.detach(), aux_losses=1)
            loss = loss + trainer.router_aux_loss_coef * aux_loss / record.micro_batches
        self.result = LossResult(loss.detach(), swept.loss.detach(), selected, stats)
        return {"loss": loss}

    def _mask(self, hidden: Tensor, head: Head) -> tuple[Scored | None, Tensor | None]:
        """The mask (T,), from one of the places that ``Selector`` lists, and the scoring sweep if there was one."""
        if not self.trainer.args.uses_selection or SELECTED in self.batch:
            scored = score_tokens(hidden, head, self.tokens.labels, keep=True) if self._has_ratio else None
            return scored, self.batch.get(SELECTED)
        return self.trainer.selector.select_in_forward(hidden, head, self.tokens, self.extra_T, self.record, self.batch)

    @property
    def _has_ratio(self) -> bool:
        return side_columns.has_ratio(self.tokens)

    @property
    def _loss_scale(self) -> float:
        """The factor of fp16's loss scaler, which applies before anything is rounded to half precision."""
        scaler = self.trainer.accelerator.scaler
        return 1.0 if scaler is None else float(scaler.get_scale())

    def _sweep(self, hidden: Tensor, head: Head, targets: Targets, scored: Scored | None) -> Swept:
        """The losses, with the student's statistics unless they are known already."""
        asked = scored is None and not self.record.has_stats
        needs = OBJECTIVES[self.trainer.args.objective].needs
        return weighted_sweep(
            hidden,
            head,
            targets,
            labels=self.tokens.labels if asked else None,
            scored=scored,
            rounded=asked and not needs and not targets.factored,  # as TRL does
            factor=self.trainer.accelerator.num_processes / self.record.denominator * self._loss_scale,
            everywhere=needs <= {"teacher"} and "token_weight" not in self.tokens.side,
        )
