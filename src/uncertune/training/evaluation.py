"""Evaluation during training: sums over the response tokens of all rows and ranks, independent of batching.

``loss`` is plain cross-entropy for every objective. ``objective`` is the value of the objective; if it selects, its
mask is that of all rows of the evaluation together, as if they were one optimizer step.

Shape legend: ``T`` response tokens of a batch, ``D`` hidden size.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from uncertune.errors import UserError
from uncertune.fused import TokenStats, linear_weighted_nll, linear_weighted_nll_with_stats
from uncertune.fused.transfers import to_cpu, values
from uncertune.objectives import OBJECTIVES, Head
from uncertune.selection import METRICS, scores_of
from uncertune.training import side_columns
from uncertune.training.batch import Documents, Tokens
from uncertune.training.config import UncertuneConfig
from uncertune.training.devices import sum_over_ranks
from uncertune.training.references import Rows
from uncertune.training.step import Rule, choose
from uncertune.training.weights import targets_of

MEASURES = ("loss", "entropy", "mean_token_accuracy", "num_tokens")
OBJECTIVE = "objective"
OF_TRANSFORMERS = ("runtime", "samples_per_second", "steps_per_second")


@dataclass
class Evaluation:
    """The sums of one evaluation, of this rank until ``finish``."""

    rule: Rule
    sums: dict[str, float] = field(default_factory=dict)
    _scores: list[Tensor | None] = field(default_factory=list)
    _documents: list[Documents] = field(default_factory=list)
    _values: list[tuple[Tensor, Tensor]] = field(default_factory=list)
    """The objective's values of each batch, (T,) each: if a token is selected, and if it is not."""

    def add(self, **values: float) -> None:
        for name, value in values.items():
            self.sums[name] = self.sums.get(name, 0.0) + value

    def add_selectable(
        self, scores: Tensor | None, documents: Documents, selected_T: Tensor, unselected_T: Tensor
    ) -> None:
        """Keep a batch until the mask over all of them is known."""
        kept = to_cpu([one.detach() for one in (selected_T, unselected_T, scores) if one is not None])
        self._scores.append(None if scores is None else kept[2])
        self._documents.append(documents)
        self._values.append((kept[0], kept[1]))

    def finish(self) -> dict[str, float]:
        """Means over the tokens of all ranks, all of which call this together."""
        names = ("tokens", "loss", "entropy", "correct", "objective", "has_objective")
        own = dict.fromkeys(names, 0.0) | self.sums
        if sum_over_ranks({"n": len(self._values)})["n"]:
            chosen = choose(self.rule, 0, self._scores, self._documents)
            for mask, (selected_T, unselected_T) in zip(chosen.masks, self._values, strict=True):
                own["objective"] += float(torch.where(mask, selected_T, unselected_T).sum())
        sums = sum_over_ranks(own)
        tokens = max(sums["tokens"], 1)
        out = {
            "loss": sums["loss"] / tokens,
            "entropy": sums["entropy"] / tokens,
            "mean_token_accuracy": sums["correct"] / tokens,
        }
        return out | ({OBJECTIVE: sums["objective"] / tokens} if sums["has_objective"] else {})


@dataclass
class EvaluationLoss:
    """Plain cross-entropy (T,) as a function of hidden states (T, D) and head; adds the batch to ``evaluation``."""

    trainer: Any
    evaluation: Evaluation
    tokens: Tokens
    rows: Rows
    extra_T: Tensor | None

    def of_hidden(self, hidden: Tensor, head: Head, _aux_loss: Tensor | None) -> dict[str, Tensor]:
        args, tokens = self.trainer.args, self.tokens
        plain = OBJECTIVES["mle"](tokens.labels)
        loss_T, stats = linear_weighted_nll_with_stats(hidden, head, plain, tokens.labels, rounded=True)
        loss, entropy, correct = values([loss_T.sum(), stats.entropy.sum(), stats.correct.sum()])
        self.evaluation.add(tokens=tokens.labels.numel(), loss=loss, entropy=entropy, correct=correct)
        if has_own_objective(args, tokens.side):
            self._add_objective(hidden, head, stats)
        return {"loss": loss_T}

    def _add_objective(self, hidden: Tensor, head: Head, stats: TokenStats) -> None:
        args, tokens = self.trainer.args, self.tokens
        teacher, anchor = self.trainer.references.bound(self.rows, head)

        def under(selected: Tensor | None) -> Tensor:
            return linear_weighted_nll(hidden, head, targets_of(args, tokens, selected, teacher, anchor, stats))

        self.evaluation.add(has_objective=1)
        if not args.uses_selection:
            self.evaluation.add(objective=float(under(None).sum()))
            return
        metric = METRICS[args.selection_metric]
        scores = None if metric.drawn else scores_of(args.selection_metric, stats, self.extra_T)
        everything = torch.ones_like(tokens.labels, dtype=torch.bool)
        self.evaluation.add_selectable(scores, tokens.documents, under(everything), under(~everything))


def has_own_objective(args: UncertuneConfig, columns: Any) -> bool:
    """Whether the objective's value differs from the loss, and the data has the columns that it needs."""
    differs = not args.is_plain or "token_weight" in columns
    return differs and side_columns.has_columns(args, columns)


def check_best_metric(args: UncertuneConfig, rows: Any, *, more: bool) -> None:
    """Raise UserError if ``metric_for_best_model`` names a metric that no evaluation measures.

    ``rows`` are the evaluation data, a data set or a dict of them; ``more``: the user measures further metrics.
    """
    asked = args.metric_for_best_model
    if asked is None or rows is None or more:
        return
    sets = {f"eval_{name}": one for name, one in rows.items()} if isinstance(rows, Mapping) else {"eval": rows}
    known = [f"{prefix}_{name}" for prefix, one in sets.items() for name in _measured(args, one)]
    if asked not in known and f"eval_{asked}" not in known:
        listed = [name for name in known if not name.endswith(OF_TRANSFORMERS)]
        raise UserError(f"metric_for_best_model={asked!r} is not measured: choose from {', '.join(listed)}")


def _measured(args: UncertuneConfig, rows: Any) -> list[str]:
    columns = rows.column_names or list(next(iter(rows), {}))
    objective = [OBJECTIVE] if has_own_objective(args, columns) else []
    return [*MEASURES, *objective, *OF_TRANSFORMERS]
