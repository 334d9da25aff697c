"""One optimizer step: which of its tokens are selected, however it is cut, and what is recorded of it.

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
from uncertune.selection import METRICS, random_scores, select, threshold
from uncertune.training.batch import Documents

T = TypeVar("T")

POLICY_MEASURES = ("importance_ratio", "clipped_fraction", "kl")
"""Sums over tokens that a step of ``policy_gradient`` adds to its record; their means are logged."""


@dataclass(frozen=True)
class Rule:
    """How tokens are selected: the fields ``selection_*`` of the configuration, and the seed of ``random``."""

    metric: str
    fraction: float
    level: Any
    seed: int

    def choose(self, scores: Tensor, document: Tensor) -> tuple[Tensor, float]:
        """The mask of ``scores`` and the lowest selected score."""
        mask = select(scores, self.fraction, level=self.level, document=document)
        return mask, threshold(scores, mask, level=self.level, document=document)


@dataclass
class Chosen:
    """The outcome of a selection over one scope."""

    masks: list[Tensor]
    """One (T,) bool mask for each of this rank's micro-batches."""
    threshold: float
    selected: int
    """Selected tokens of the whole scope, over all ranks."""


def choose(
    rule: Rule,
    step: int,
    scores: Sequence[Tensor | None],
    documents: Sequence[Documents],
    *,
    everywhere: bool = True,
    first: int = 0,
) -> Chosen:
    """Select among all micro-batches given, and with ``everywhere`` among those of all ranks.

    ``first`` is the index in the step of the first document given.

    ``scores`` are (T,), or None for ``random``, whose numbers depend on a document's index in the step alone.
    The arithmetic runs on the CPU in one fixed order, so every rank finds the same mask, bit for bit.
    """
    mine = [
        (None if score is None else score.detach().cpu(), document.index.cpu(), document.position.cpu())
        for score, document in zip(scores, documents, strict=True)
    ]
    ranks = all_ranks(mine) if everywhere else [mine]
    rank = dist.get_rank() if everywhere and len(ranks) > 1 else 0
    pieces, offset, lengths, own = [], first, [], []
    for micro, source, (score, index, position) in in_order(ranks):
        if score is not None and bool(score.isnan().any()):
            where = place(step, micro, len(ranks[source]), source)
            raise NotFiniteError(f"{where}: the {rule.metric} of a token is nan")
        pieces.append((score, index + offset, position))
        offset += count_of(index)
        lengths.append(index.numel())
        own.append(source == rank)
    document_S = torch.cat([index for _, index, _ in pieces])
    position_S = torch.cat([position for _, _, position in pieces])
    if METRICS[rule.metric].drawn:
        drawn_S = torch.zeros_like(position_S) if rule.level == "document" else position_S
        scores_S = random_scores(rule.seed, step, document_S, drawn_S)
    else:
        scores_S = torch.cat([score for score, _, _ in pieces if score is not None])
    mask_S, lowest = rule.choose(scores_S, document_S)
    masks = [mask for mask, is_own in zip(mask_S.split(lengths), own, strict=True) if is_own]
    return Chosen(
        [mask.to(document.index.device) for mask, document in zip(masks, documents, strict=True)],
        lowest,
        int(mask_S.sum()),
    )


def first_documents(documents: Sequence[Documents]) -> list[int]:
    """Of each of this rank's micro-batches, the index in the step of its first document."""
    ranks = all_ranks([count_of(one.index) for one in documents])
    rank = dist.get_rank() if len(ranks) > 1 else 0
    found, before = [], 0
    for _, source, count in in_order(ranks):
        if source == rank:
            found.append(before)
        before += count
    return found


def in_order(ranks: Sequence[Sequence[T]]) -> Iterator[tuple[int, int, T]]:
    """Micro-batch, rank and its part, of every micro-batch of a step: by accumulation step, then by rank."""
    for micro in range(max(map(len, ranks))):
        for rank, parts in enumerate(ranks):
            if micro < len(parts):
                yield micro, rank, parts[micro]


def count_of(index: Tensor) -> int:
    """How many documents a micro-batch's ``Documents.index`` counts."""
    return int(index[-1]) + 1 if index.numel() else 0


def place(step: int, micro: int, micro_batches: int, rank: int) -> str:
    """A micro-batch in words, for errors; all of them counted from 0."""
    on = f" on rank {rank}" if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1 else ""
    return f"step {step + 1}, micro-batch {micro + 1} of {micro_batches}{on}"


def all_ranks(mine: Any) -> list[Any]:
    """Every rank's object, in rank order."""
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return [mine]
    gathered: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(gathered, mine)
    return gathered


def sum_over_ranks(values: dict[str, float]) -> dict[str, float]:
    """Each value summed over all ranks."""
    ranks = all_ranks(values)
    return {name: sum(rank[name] for rank in ranks) for name in values}


@dataclass
class StepRecord:
    """What is known of the optimizer step under way; sums are over this rank's tokens until ``finish``."""

    step: int
    """Steps done before this one."""
    tokens: int
    """Response tokens of the step, over all ranks: the denominator."""
    micro_batches: int
    exact: bool = True
    """Selected among all tokens of its scope, and not by a threshold of earlier steps."""
    done: int = 0
    has_stats: bool = False
    """Whether entropy and accuracy are known already, from a scoring pass."""
    selected: int = 0
    """Selected tokens of the step, over all ranks."""
    thresholds: list[float] = field(default_factory=list)
    sums: dict[str, float] = field(default_factory=dict)
    failure: str | None = None
    """Which of this rank's micro-batches had a loss that is no number, and which loss."""

    def add(self, **values: float) -> None:
        for name, value in values.items():
            self.sums[name] = self.sums.get(name, 0.0) + value

    def add_stats(self, stats: TokenStats) -> None:
        self.add(
            entropy=float(stats.entropy.sum()), correct=float(stats.correct.sum()), scored=float(stats.entropy.numel())
        )

    def add_loss(self, loss_T: Tensor, selected: Tensor | None, names: Callable[[], Sequence[str]], rank: int) -> None:
        """Count a micro-batch as done, with its losses; ``names`` are asked for those of its documents."""
        total = float(loss_T.sum())
        self.add(loss=total)
        if selected is not None:
            parts = torch.where(selected, loss_T, 0).sum(), torch.where(selected, 0, loss_T).sum()
            self.add(loss_selected=float(parts[0]), loss_unselected=float(parts[1]))
        if not math.isfinite(total) and self.failure is None:
            where = place(self.step, self.done, self.micro_batches, rank)
            self.failure = f"{where} (documents {' '.join(names())}): the loss is {total}"
        self.done += 1

    @property
    def complete(self) -> bool:
        return self.done == self.micro_batches

    def finish(self, denominator: float) -> dict[str, float]:
        """The step's metrics: means over its tokens, each part of the loss, threshold and selected fraction.

        Raises NotFiniteError, on every rank, where a loss on any of them was no finite number.
        """
        ranks = all_ranks((self.sums, self.thresholds, self.failure))
        sums = {name: sum(one[name] for one, _, _ in ranks) for name in self.sums}
        if not math.isfinite(sums["loss"]):
            failures = [*(one for _, _, one in ranks), f"step {self.step + 1}: the sum of the losses overflows"]
            raise NotFiniteError(next(one for one in failures if one))
        tokens = max(self.tokens, 1)
        out = {"loss": sums["loss"] / denominator, "inputs": sums["inputs"]}
        if "entropy" in sums:
            scored = max(sums["scored"], 1)
            out["entropy"] = sums["entropy"] / scored
            out["mean_token_accuracy"] = sums["correct"] / scored
        out |= {name: sums[name] / tokens for name in POLICY_MEASURES if name in sums}
        if "aux_loss" in sums:
            out["aux_loss"] = sums["aux_loss"] / sums["aux_losses"]
        if "selected" in sums:
            out["loss_selected"] = sums["loss_selected"] / denominator
            out["loss_unselected"] = sums["loss_unselected"] / denominator
            out["selected_fraction"] = sums["selected"] / tokens
            lowest = [one for _, thresholds, _ in ranks for one in thresholds if not math.isnan(one)]
            out["selection_threshold"] = min(lowest, default=math.nan)
        if "exact_or_running" in sums:
            out["selection_overlap"] = sums["exact_and_running"] / max(sums["exact_or_running"], 1)
        return out


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
