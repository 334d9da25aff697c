"""One optimizer step: the selection of its tokens, independent of how it is cut, and its records.

Shape legend: ``T`` response tokens of one micro-batch, ``S`` those of the whole step (all micro-batches, all ranks),
in the order accumulation step, rank, row, position.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from uncertune.errors import NotFiniteError
from uncertune.fused import TokenStats
from uncertune.fused.transfers import to_cpu, values
from uncertune.selection import METRICS, document_means, exact_count, random_scores, select_by_threshold
from uncertune.selection.radix import top_masks
from uncertune.selection.select import ranks_above
from uncertune.training.batch import Documents
from uncertune.training.config import UncertuneConfig
from uncertune.training.devices import all_ranks, radix_exchange, sum_over_ranks

T = TypeVar("T")

POLICY_MEASURES = ("importance_ratio", "clipped_fraction", "kl")
"""Sums over tokens that a step of ``policy_gradient`` adds to its record; their means are logged."""


@dataclass(frozen=True)
class Rule:
    """The rule of selection: the fields ``selection_*`` of the configuration, and the seed of ``random``."""

    metric: str
    fraction: float
    level: Any
    seed: int
    order: Any = "highest"
    threshold: float | None = None
    """A fixed threshold in the metric's unit, instead of the fraction."""

    @classmethod
    def of(cls, args: UncertuneConfig) -> Rule:
        """The rule that a configuration asks for."""
        return cls(
            args.selection_metric,
            args.selection_fraction,
            args.selection_level,
            args.seed,
            args.selection_order,
            args.selection_threshold,
        )


@dataclass
class Chosen:
    """The outcome of a selection over one scope."""

    masks: list[Tensor]
    """One (T,) bool mask for each of this rank's micro-batches, on the CPU."""
    threshold: float
    """The lowest selected score, or the highest with order ``lowest``; NaN if nothing is selected."""
    selected: int
    """Selected tokens of the whole scope, over all ranks."""


def choose(
    rule: Rule,
    step: int,
    scores: Sequence[Tensor | None],
    documents: Sequence[Documents],
    *,
    everywhere: bool = True,
    first: Sequence[int] | None = None,
) -> Chosen:
    """Select among all micro-batches given, and with ``everywhere`` among those of all ranks.

    ``scores`` are (T,), or None for a metric that is drawn from a document's index in the step: ``first`` is that of
    each micro-batch's first document, computed over all ranks by default.

    The mask equals that of ``uncertune.selection.select`` on all scores in data order, bit for bit, on every rank.
    Scores are not gathered: they are ranked on the CPU of their rank, and ranks exchange counts
    (``uncertune.selection.radix``).

    Raises NotFiniteError on every rank if a score of any rank is NaN.
    """
    if METRICS[rule.metric].drawn:
        first = first_documents(documents) if first is None else first
        scores = [_drawn(rule, step, one, start) for one, start in zip(documents, first, strict=True)]
    ranked, spread = [], []
    known = to_cpu([score.detach() for score in scores if score is not None])
    for score, document in zip(known, documents, strict=True):
        parts, index = _ranked_parts(rule.level, score, document)
        ranked.append(parts)
        spread.append(index)
    total = _count(rule, step, ranked, everywhere)
    masks, limit = _top(rule, ranked, total, everywhere)
    masks = [mask if index is None else mask[index] for mask, index in zip(masks, spread, strict=True)]
    selected = sum(int(mask.sum()) for mask in masks)
    if everywhere:
        selected = int(sum_over_ranks({"selected": selected})["selected"])
    return Chosen(masks, limit, selected)


def _ranked_parts(level: str, scores: Tensor, document: Documents) -> tuple[Tensor, Tensor | None]:
    """The ranked scores of a micro-batch: of its tokens, or its documents' means and each token's document."""
    if level == "token":
        return scores, None
    return document_means(scores, document.index)


def _drawn(rule: Rule, step: int, documents: Documents, first: int) -> Tensor:
    """The scores (T,) of ``random``."""
    index, position = documents.index + first, documents.position
    return random_scores(rule.seed, step, index, torch.zeros_like(position) if rule.level == "document" else position)


def _count(rule: Rule, step: int, ranked: Sequence[Tensor], everywhere: bool) -> int:
    """The number of scores. Raises NotFiniteError if a score is NaN."""
    mine = [(one.numel(), bool(one.isnan().any())) for one in ranked]
    ranks = all_ranks(mine) if everywhere else [mine]
    for micro, source, (_, is_nan) in in_order(ranks):
        if is_nan:
            where = place(step, micro, len(ranks[source]), source)
            raise NotFiniteError(f"{where}: the {rule.metric} of a token is nan")
    return sum(count for one in ranks for count, _ in one)


def _top(rule: Rule, ranked: Sequence[Tensor], total: int, everywhere: bool) -> tuple[list[Tensor], float]:
    """Masks over ``ranked`` by the rule's order, and the last selected score."""
    if rule.threshold is not None:
        masks = [select_by_threshold(one, rule.threshold, order=rule.order) for one in ranked]
        return masks, rule.threshold
    exchange = radix_exchange() if everywhere else {}
    count = exact_count(rule.fraction, total)
    if rule.order == "lowest":
        masks, limit = top_masks([-one for one in ranked], count, **exchange)
        return masks, -limit
    above = ranks_above(rule.order, count, total)
    masks, limit = top_masks(ranked, above + count, **exchange)
    if above:
        left_out, _ = top_masks(ranked, above, **exchange)
        masks = [mask & ~other for mask, other in zip(masks, left_out, strict=True)]
    return masks, limit


def first_documents(documents: Sequence[Documents]) -> list[int]:
    """The index in the step of the first document of each of this rank's micro-batches."""
    ranks = all_ranks([count_of(one.index) for one in documents])
    rank = dist.get_rank() if len(ranks) > 1 else 0
    found, before = [], 0
    for _, source, count in in_order(ranks):
        if source == rank:
            found.append(before)
        before += count
    return found


def in_order(ranks: Sequence[Sequence[T]]) -> Iterator[tuple[int, int, T]]:
    """Micro-batch number, rank and part of every micro-batch of a step, by accumulation step, then by rank."""
    for micro in range(max(map(len, ranks))):
        for rank, parts in enumerate(ranks):
            if micro < len(parts):
                yield micro, rank, parts[micro]


def count_of(index: Tensor) -> int:
    """The number of documents in a micro-batch's ``Documents.index``."""
    return int(index[-1]) + 1 if index.numel() else 0


def place(step: int, micro: int, micro_batches: int, rank: int) -> str:
    """A micro-batch in words, for errors; the arguments count from 0."""
    on = f" on rank {rank}" if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1 else ""
    return f"step {step + 1}, micro-batch {micro + 1} of {micro_batches}{on}"


@dataclass
class StepRecord:
    """The record of the current optimizer step; sums are over this rank's tokens until ``finish``.

    Values on the device stay there until ``finish``, which fetches all of them together.
    """

    step: int
    """Number of steps before this one."""
    tokens: int
    """Response tokens of the step, over all ranks."""
    micro_batches: int
    exact: bool = True
    """Whether tokens are ranked over their scope instead of compared with a threshold of earlier steps."""
    by_selected: bool = False
    """Whether the loss is divided by the selected tokens alone (``normalize_by: selected``)."""
    from_below: bool = False
    """Whether the lowest scores are selected (``selection_order: lowest``)."""
    done: int = 0
    has_stats: bool = False
    """Whether a scoring pass has counted entropy and accuracy."""
    selected: int = 0
    """Selected tokens of the step, over all ranks."""
    thresholds: list[float] = field(default_factory=list)
    parts: dict[str, list[float | Tensor]] = field(default_factory=dict)
    """The summands of each sum, numbers or scalars on the device."""
    places: list[Callable[[], str]] = field(default_factory=list)
    """The finished micro-batches of this rank in words, for errors."""

    def add(self, **summands: float | Tensor) -> None:
        for name, value in summands.items():
            self.parts.setdefault(name, []).append(value)

    def add_stats(self, stats: TokenStats) -> None:
        self.add(entropy=stats.entropy.sum(), correct=stats.correct.sum(), scored=stats.entropy.numel())

    def add_nll(self, nll_T: Tensor, selected_T: Tensor) -> None:
        """Count the student's −log p(label) of a micro-batch apart, for selected tokens and for the others."""
        selected_T = selected_T.to(nll_T.device)
        for name, mask_T in (("nll_selected", selected_T), ("nll_unselected", ~selected_T)):
            part_T = torch.where(mask_T, nll_T, 0)
            self.add(**{name: part_T.sum(dtype=torch.float64), f"{name}_tokens": mask_T.sum()})

    def add_loss(self, loss_T: Tensor, selected: Tensor | None, names: Callable[[], Sequence[str]], rank: int) -> None:
        """Add the losses of a finished micro-batch; ``names`` returns the names of its documents, for errors."""
        self.add(loss=loss_T.sum())
        if selected is not None:
            parts = torch.where(selected, loss_T, 0).sum(), torch.where(selected, 0, loss_T).sum()
            self.add(loss_part_selected=parts[0], loss_part_unselected=parts[1])
        where = place(self.step, self.done, self.micro_batches, rank)
        self.places.append(lambda: f"{where} (documents {' '.join(names())})")
        self.done += 1

    @property
    def complete(self) -> bool:
        return self.done == self.micro_batches

    @property
    def denominator(self) -> int:
        """The divisor of the step's summed loss; for selected tokens, the selection must be known."""
        return max(self.selected if self.by_selected else self.tokens, 1)

    def finish(self) -> dict[str, float]:
        """The step's metrics: means over its tokens, each part of the loss, threshold and selected fraction.

        Raises NotFiniteError on every rank if a loss on any of them is not finite.
        """
        parts = self._fetched()
        own = {name: sum(summands, 0.0) for name, summands in parts.items()}
        ranks = all_ranks((own, self.thresholds, self._failure(parts["loss"])))
        sums = {name: sum(one[name] for one, _, _ in ranks) for name in own}
        if not math.isfinite(sums["loss"]):
            failures = [*(one for _, _, one in ranks), f"step {self.step + 1}: the sum of the losses overflows"]
            raise NotFiniteError(next(one for one in failures if one))
        tokens, denominator = max(self.tokens, 1), self.denominator
        out = {"loss": sums["loss"] / denominator, "inputs": sums["inputs"]}
        if "entropy" in sums:
            scored = max(sums["scored"], 1)
            out["entropy"] = sums["entropy"] / scored
            out["mean_token_accuracy"] = sums["correct"] / scored
        out |= {name: sums[name] / tokens for name in POLICY_MEASURES if name in sums}
        if "anchor_loss" in sums:
            out |= {"anchor_loss": sums["anchor_loss"] / denominator, "anchor_kl": sums["anchor_kl"] / tokens}
        if "aux_loss" in sums:
            out["aux_loss"] = sums["aux_loss"] / sums["aux_losses"]
        if "selected" in sums:
            out |= {name: sums[name] / denominator for name in ("loss_part_selected", "loss_part_unselected")}
            for name in ("nll_selected", "nll_unselected"):
                if sums.get(f"{name}_tokens"):
                    out[name] = sums[name] / sums[f"{name}_tokens"]
            out["selected_fraction"] = sums["selected"] / tokens
            limits = [one for _, thresholds, _ in ranks for one in thresholds if not math.isnan(one)]
            out["selection_threshold"] = (max if self.from_below else min)(limits, default=math.nan)
        if "exact_or_running" in sums:
            out["selection_overlap"] = sums["exact_and_running"] / max(sums["exact_or_running"], 1)
        return out

    def _fetched(self) -> dict[str, list[float]]:
        """``parts`` as numbers."""
        fetched = iter(values([one for summands in self.parts.values() for one in summands if isinstance(one, Tensor)]))
        return {
            name: [next(fetched) if isinstance(one, Tensor) else float(one) for one in summands]
            for name, summands in self.parts.items()
        }

    def _failure(self, losses: Sequence[float]) -> str | None:
        """The first micro-batch of this rank with a non-finite loss, and the loss."""
        found = (
            f"{where()}: the loss is {one}"
            for one, where in zip(losses, self.places, strict=True)
            if not math.isfinite(one)
        )
        return next(found, None)


def has_noise(model: nn.Module) -> bool:
    """Whether a training forward may differ from one in eval mode: a dropout module, or a configured rate of dropout
    or of router noise (``router_jitter_noise`` of Mixtral, ``moe_jitter_eps`` of DBRX) above 0."""
    for module in model.modules():
        if isinstance(module, nn.modules.dropout._DropoutNd) and module.p > 0:
            return True
    config: Any = getattr(model, "config", None)
    settings = config.get_text_config().to_dict() if hasattr(config, "get_text_config") else {}
    return any(rate > 0 for rate in _noise_rates(settings))


def _noise_rates(settings: Mapping[str, Any]) -> Iterator[float]:
    for name, value in settings.items():
        if isinstance(value, Mapping):
            yield from _noise_rates(value)
        elif isinstance(value, float) and ("drop" in name or "jitter" in name):
            yield value
