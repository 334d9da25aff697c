"""The loss of one micro-batch, computed from its hidden states inside the forward of the wrapped model.

There, because the hooks of DDP, FSDP and DeepSpeed act on what goes through that forward.

Shape legend: ``T`` response tokens of the micro-batch, ``D`` hidden size.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from uncertune.fused import (
    Scored,
    TokenStats,
    linear_weighted_nll,
    linear_weighted_nll_with_stats,
    score_tokens,
)
from uncertune.objectives import OBJECTIVES, Head, Targets, TeacherLike, anchored
from uncertune.training import side_columns
from uncertune.training.batch import SELECTED, Tokens
from uncertune.training.config import UncertuneConfig
from uncertune.training.step import StepRecord
from uncertune.training.teacher_cache import CachedHidden


@dataclass(frozen=True)
class LossResult:
    """What the forward of a micro-batch found, detached."""

    loss: Tensor
    """The micro-batch's part of the step's loss, a scalar in full precision."""
    loss_T: Tensor
    """Of each token, in nats, undivided."""
    selected_T: Tensor | None
    stats: TokenStats | None
    """The student's statistics, where they were computed beside the loss."""


@dataclass
class StepLoss:
    """The training loss as a function of hidden states (T, D), head and auxiliary loss; ``result`` after its one call.

    ``teacher`` and ``extra_T`` come from passes of other models, which must run before the student's forward.
    """

    trainer: Any
    record: StepRecord
    batch: dict[str, Any]
    tokens: Tokens
    teacher: TeacherLike | CachedHidden | None
    extra_T: Tensor | None
    result: LossResult | None = None

    def __call__(self, hidden: Tensor, head: Head, aux_loss: Tensor | None) -> dict[str, Tensor]:
        trainer, record = self.trainer, self.record
        scored, selected = self._mask(hidden, head)
        teacher = trainer.references.bound(self.teacher, head)
        targets = targets_of(trainer.args, self.tokens, selected, teacher, None if scored is None else scored.stats)
        loss_T, stats = self._losses(hidden, head, targets, scored)
        if stats is not None:
            record.add(**side_columns.measures(trainer.args, self.tokens, stats, teacher))
        loss = loss_T.sum() / record.denominator * trainer.accelerator.num_processes
        if trainer.aux_loss_enabled:
            assert aux_loss is not None
            record.add(aux_loss=float(aux_loss.detach()), aux_losses=1)
            loss = loss + trainer.router_aux_loss_coef * aux_loss / record.micro_batches
        self.result = LossResult(loss.detach(), loss_T.detach(), selected, stats)
        return {"loss": loss}

    def _mask(self, hidden: Tensor, head: Head) -> tuple[Scored | None, Tensor | None]:
        """The mask (T,), from one of the places that ``Selector`` names, and the scoring sweep where one was made."""
        if not self.trainer.args.uses_selection or SELECTED in self.batch:
            scored = score_tokens(hidden, head, self.tokens.labels, keep=True) if self._has_ratio else None
            return scored, self.batch.get(SELECTED)
        return self.trainer.selector.select_in_forward(hidden, head, self.tokens, self.extra_T, self.record, self.batch)

    @property
    def _has_ratio(self) -> bool:
        return side_columns.has_ratio(self.tokens)

    @property
    def _loss_scale(self) -> float:
        """What the scaler of fp16 multiplies the loss by, before anything is rounded to half precision."""
        scaler = self.trainer.accelerator.scaler
        return 1.0 if scaler is None else float(scaler.get_scale())

    def _losses(
        self, hidden: Tensor, head: Head, targets: Targets, scored: Scored | None
    ) -> tuple[Tensor, TokenStats | None]:
        """The loss of each token and the student's statistics, in one sweep where they are not known already."""
        factor = self.trainer.accelerator.num_processes / self.record.denominator * self._loss_scale
        if scored is not None or self.record.has_stats:
            loss_T = linear_weighted_nll(hidden, head, targets, scored=scored, factor=factor)
            return loss_T, None if scored is None else scored.stats
        rounded = self.trainer.args.is_plain
        return linear_weighted_nll_with_stats(hidden, head, targets, self.tokens.labels, rounded=rounded, factor=factor)


def targets_of(
    args: UncertuneConfig, tokens: Tokens, selected: Tensor | None, teacher: TeacherLike | None, stats: Any
) -> Targets:
    """The objective's weights of a micro-batch's tokens; ``stats`` are the student's own, for importance ratios."""
    given: dict[str, Any] = {"selected": selected}
    if "teacher" in OBJECTIVES[args.objective].uses:
        given["teacher"] = teacher
    given |= side_columns.side_information(args, tokens, stats)
    if "top_k" in OBJECTIVES[args.objective].uses:
        given |= {"top_k": args.teacher_top_k, "truncation": args.teacher_truncation}
    targets = OBJECTIVES[args.objective](tokens.labels, **given)
    if args.beta and teacher is not None:
        targets = anchored(targets, tokens.labels, teacher, args.beta)
    return targets.scaled(tokens.side["token_weight"]) if "token_weight" in tokens.side else targets
