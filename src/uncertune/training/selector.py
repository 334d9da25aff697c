"""The selection of a step's tokens.

A mask is computed in one of these places:

* ``Selector.select_for_step``, before the losses of a step: if the whole step is ranked but runs in several
  micro-batches, if dropout is active, if dropped documents are not run, or if the loss is divided by the selected
  tokens. It scores in a separate forward pass or, with gradient checkpointing, from the training forwards
  (``kept_forward``). The mask is stored in the batch and not computed again.
* ``Selector.select_in_forward``, inside the training forward, from its hidden states: if one micro-batch per rank is
  the whole scope, or (scope ``running``, a fixed threshold) if no other micro-batch matters.
* ``Evaluation.finish``, for the value of the objective on evaluation data.

Shape legend: ``T`` response tokens of a micro-batch, ``D`` hidden size.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from uncertune.errors import UserError
from uncertune.fused import Scored, score_tokens
from uncertune.fused.transfers import to_device
from uncertune.objectives import OBJECTIVES, Head
from uncertune.runs.files import write_atomically
from uncertune.selection import METRICS, RunningThreshold, scores_of
from uncertune.teachers.adapter import frozen_rows
from uncertune.training.batch import SELECTED, Documents, Tokens, document_rows
from uncertune.training.devices import sum_over_ranks
from uncertune.training.document_dropping import keep_selected, skipped
from uncertune.training.kept_forward import KEPT, ForwardKeeper
from uncertune.training.references import stats_of
from uncertune.training.step import Chosen, Rule, StepRecord, choose, first_documents, has_noise
from uncertune.uncertainty import mc_dropout, token_uncertainty

STATE = "running_threshold.json"


@dataclass
class RunningSelection:
    """Scope ``running``: the threshold, the same on every rank, and this step's scores for its next value."""

    rule: Rule
    threshold: RunningThreshold
    _scores: list[Tensor | None] = field(default_factory=list)
    _documents: list[Documents] = field(default_factory=list)
    _masks: list[Tensor] = field(default_factory=list)

    def choose(self, scores: Tensor, documents: Documents) -> Chosen:
        """The mask of one micro-batch, whose scores are kept until ``finish``."""
        scores = scores.detach().cpu()
        known = torch.where(scores.isnan(), 0.0, scores)  # ``finish`` raises for a NaN, on every rank
        mask = self.threshold.mask(known, documents.index)
        self._scores.append(scores)
        self._documents.append(documents)
        self._masks.append(mask)
        return Chosen([mask], self.threshold.value or 0.0, int(mask.sum()))

    def finish(self, step: int) -> dict[str, float]:
        """End the step; returns how many of this rank's tokens are in both the running and the exact mask, and how many
        are in at least one of them."""
        exact = choose(self.rule, step, self._scores, self._documents)
        pairs = list(zip(self._masks, exact.masks, strict=True))
        self._scores, self._documents, self._masks = [], [], []
        self.threshold.update(exact.threshold)
        return {
            "exact_and_running": float(sum(int((mask & one).sum()) for mask, one in pairs)),
            "exact_or_running": float(sum(int((mask | one).sum()) for mask, one in pairs)),
        }

    def save(self, folder: str | Path) -> None:
        write_atomically(Path(folder) / STATE, json.dumps({"threshold": self.threshold.value}))

    def load(self, folder: str | Path) -> None:
        self.threshold.value = json.loads((Path(folder) / STATE).read_text(encoding="utf-8"))["threshold"]


class Selector:
    """The selection of a run, by the fields ``selection_*`` of its configuration.

    Built before a reference adds dropout layers. Raises UserError for metric ``bald`` if dropout cannot be sampled.
    """

    def __init__(self, trainer: Any) -> None:
        args = trainer.args
        self._trainer, self._args = trainer, args
        self.rule = rule = Rule.of(args)
        self.running = RunningSelection(rule, RunningThreshold(rule.fraction, rule.level, rule.order))
        self._metric = METRICS[args.selection_metric]
        self._dropout = has_noise(trainer.model) or bool(args.neftune_noise_alpha)  # which is noise too
        self._keeper = ForwardKeeper(trainer, noisy=self._dropout)
        self._verify_dropout = True  # at the first batch, which provides tokens
        if args.selection_extra == "epistemic" and not args.scores_by_members:
            if trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled:
                raise UserError(
                    f"selection_metric={args.selection_metric!r} is not supported with FSDP or DeepSpeed: use DDP, or "
                    "metric loss"
                )
            with mc_dropout(trainer.model, args.bald_rate):
                pass

    # ---- before the training forwards

    def select_for_step(self, batches: list[Any], record: StepRecord) -> list[Any]:
        """The micro-batches of a step, each with its mask if it must be known before the forward, or without the
        documents that are not selected."""
        if not (batches and self._args.uses_selection and self._needs_own_pass(record)):
            return batches
        scores: list[Tensor | None] = []
        places: list[Documents] = []
        losses: list[Tensor] = []
        device = self._trainer.args.device
        keeps = self._metric.needs_stats and not self._drops(record) and self._keeper.fits(batches)
        for batch in batches:
            tokens = self._trainer._tokens(self._trainer._prepare_inputs(batch))
            places.append(tokens.documents)
            if keeps:
                extra_T = self.extra_scores(self._trainer.model_wrapped, tokens)
                batch[KEPT] = kept = self._keeper.run(tokens)
                stats = score_tokens(kept.hidden, kept.head, tokens.labels).stats
                record.add_stats(stats)
                losses.append(stats.loss)
                scores.append(scores_of(self.rule.metric, stats, extra_T))
            else:
                score, loss_T = (None, None) if self._metric.drawn else self.score(tokens, record)
                scores.append(score)
                losses += [] if loss_T is None else [loss_T]
        record.has_stats = self._metric.needs_stats
        if self._everywhere:
            chosen = [choose(self.rule, record.step, scores, places)]
        else:
            firsts = first_documents(places) if self._metric.drawn else [0] * len(places)
            chosen = [
                choose(self.rule, record.step, [score], [place], everywhere=False, first=[first])
                for score, place, first in zip(scores, places, firsts, strict=True)
            ]
        masks = [mask for one in chosen for mask in one.masks]
        self._note(record, chosen, batches, masks)
        for batch, mask in zip(batches, masks, strict=True):
            batch[SELECTED] = to_device(mask, device)
        if losses:
            for loss_T, batch in zip(losses, batches, strict=True):
                record.add_nll(loss_T, batch[SELECTED])
        return self._without_dropped(batches, masks, record) if self._drops(record) else batches

    @property
    def _everywhere(self) -> bool:
        """Whether all micro-batches of all ranks are ranked together."""
        return self._args.selection_scope != "microbatch" and self.rule.threshold is None

    @property
    def _share(self) -> float:
        """The expected fraction of selected tokens or documents."""
        return float(self._args.selection_fraction) if self.rule.threshold is None else 0.5

    def _needs_own_pass(self, record: StepRecord) -> bool:
        """Whether the masks must be known before the training forward."""
        if not record.exact:
            return False
        if self._drops(record) and self._share <= 0.5:
            return True
        if self._metric.drawn and not self._everywhere:  # its documents are counted over the whole step
            return True
        alone = not self._everywhere and not record.by_selected
        inside = record.micro_batches == 1 or alone
        return not inside or (self._dropout and self._metric.needs_stats)

    @property
    def _drops_unselected(self) -> bool:
        """Whether unselected tokens have no weight."""
        return OBJECTIVES[self._args.objective].needs == {"selected"} and not self._args.uses_anchor

    def _drops(self, record: StepRecord) -> bool:
        """Whether unselected documents need not be run. The auxiliary loss of a mixture of experts is over all tokens,
        and DeepSpeed counts micro-batches itself."""
        args, trainer = self._args, self._trainer
        can = args.selection_level == "document" and self._drops_unselected and self._share < 1
        return can and record.exact and not (trainer.aux_loss_enabled or trainer.is_deepspeed_enabled)

    def _without_dropped(self, batches: list[Any], masks: list[Tensor], record: StepRecord) -> list[Any]:
        trainer = self._trainer
        kept = keep_selected(
            batches,
            masks,
            trainer.data_collator,
            rank=trainer.accelerator.process_index,
            ranks=trainer.accelerator.num_processes,
            rows=trainer._train_batch_size,
            flattened=trainer.data_collator.flattens,
        )
        if kept is None:
            return batches
        record.micro_batches = sum(not skipped(batch) for batch in kept)
        return kept

    # ---- inside the training forwards

    def select_in_forward(
        self,
        hidden: Tensor,
        head: Head,
        tokens: Tokens,
        extra_T: Tensor | None,
        record: StepRecord,
        batch: dict[str, Any],
    ) -> tuple[Scored | None, Tensor]:
        """Select from the hidden states of the training forward, without a separate pass."""
        scored, scores = None, None
        if not self._metric.drawn:
            most = not self._drops_unselected or self._share > 0.5
            scored = score_tokens(hidden, head, tokens.labels, keep=most)
            scores = scores_of(self.rule.metric, scored.stats, extra_T)
        if record.exact:
            chosen = choose(self.rule, record.step, [scores], [tokens.documents], everywhere=self._everywhere)
        else:
            assert scores is not None
            chosen = self.running.choose(scores, tokens.documents)
        self._note(record, [chosen], [batch], chosen.masks)
        return scored, to_device(chosen.masks[0], tokens.labels.device)

    # ---- scores

    def score(self, tokens: Tokens, record: StepRecord) -> tuple[Tensor, Tensor | None]:
        """Scores (T,) of one micro-batch from a separate forward pass, without gradient and dropout, and the losses
        (T,) if the metric needs that pass."""
        model = self._trainer.model_wrapped
        extra_T = self.extra_scores(model, tokens)
        if not self._metric.needs_stats:
            return scores_of(self.rule.metric, None, extra_T), None
        stats = stats_of(frozen_rows(model, tokens.inputs, tokens.mask, tokens.index), tokens.labels)
        record.add_stats(stats)
        return scores_of(self.rule.metric, stats, extra_T), stats.loss

    def extra_scores(self, model: nn.Module, tokens: Tokens) -> Tensor | None:
        """The metric's ``extra`` (T,), from passes other than the student's; None if it needs none."""
        match self._args.selection_extra:
            case None:
                return None
            case "reference_loss":
                return self._trainer.references.rho_loss(model, tokens)
            case "epistemic":
                return self._epistemic(model, tokens)
        raise ValueError(f"nothing computes {self._args.selection_extra!r}")

    def _epistemic(self, model: nn.Module, tokens: Tokens) -> Tensor:
        """BALD of the teacher's members, or by Monte-Carlo dropout with ``bald_samples`` passes. With dropout each
        document is scored alone, so that the scores do not depend on how the step is cut, and without the DDP wrapper,
        since ranks differ in their number of passes."""
        if self._args.scores_by_members:
            return self._trainer.references.epistemic(model, tokens)
        ids, labels, attention_mask = document_rows(tokens)
        found = token_uncertainty(
            self._trainer.model,
            ids,
            labels,
            attention_mask=attention_mask,
            samples=self._args.bald_samples,
            rate=self._args.bald_rate,
            seed=self._args.seed,
            verify=self._verify_dropout,
        )
        self._verify_dropout = False
        return found.epistemic

    # ---- records

    def _note(self, record: StepRecord, chosen: list[Chosen], batches: list[Any], masks: list[Tensor]) -> None:
        """Record the outcome of selections, and write the masks of this rank's micro-batches to the selection log."""
        record.thresholds += [one.threshold for one in chosen]
        mine = sum(int(mask.sum()) for mask in masks)
        record.add(selected=mine)
        if record.by_selected:
            everywhere = self._everywhere and record.exact
            record.selected += chosen[0].selected if everywhere else int(sum_over_ranks({"selected": mine})["selected"])
        if self._args.selection_scope == "running" and record.exact:
            self.running.threshold.update(chosen[0].threshold)
        if self._args.save_selection:
            for batch, mask in zip(batches, masks, strict=True):
                self._trainer.run_log.add_selection(record.step + 1, batch, mask)
