"""Metrics by which tokens are selected (SPEC S9): one entry each in ``METRICS``.

Shape legend: ``T`` response tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol

from torch import Tensor

Extra = Literal["reference_loss", "epistemic"]


class Statistics(Protocol):
    """Loss and entropy of each token in one forward pass of the current model, both (T,), in nats."""

    @property
    def loss(self) -> Tensor: ...

    @property
    def entropy(self) -> Tensor: ...


@dataclass(frozen=True)
class Metric:
    """A score per token.

    ``score(stats, extra)`` gives the scores (T,): ``stats`` are the current model's statistics, where ``needs_stats``,
    and ``extra`` is the tensor (T,) that the field ``extra`` names. A metric without ``score`` is drawn at random by
    ``random_scores`` from a token's place in the step. ``fields`` are the configuration fields that belong to it.
    """

    score: Callable[[Statistics, Tensor], Tensor] | None
    needs_stats: bool = True
    extra: Extra | None = None
    """What must be computed in addition: the loss of a holdout reference, or the epistemic uncertainty."""
    fields: tuple[str, ...] = ()

    @property
    def drawn(self) -> bool:
        """Whether the scores depend on no model."""
        return self.score is None


METRICS: dict[str, Metric] = {
    "loss": Metric(lambda stats, extra: stats.loss),
    "entropy": Metric(lambda stats, extra: stats.entropy),
    # Rho-1 (arXiv 2404.07965), eq. 3: the excess loss over a holdout reference
    "rho": Metric(lambda stats, extra: stats.loss - extra, extra="reference_loss", fields=("rho_reference",)),
    "random": Metric(None, needs_stats=False),
    "bald": Metric(
        lambda stats, extra: extra,
        needs_stats=False,
        extra="epistemic",
        fields=("bald_samples", "bald_rate", "bald_members"),
    ),
}


def scores_of(metric: str, stats: Statistics | None, extra: Tensor | None) -> Tensor:
    """The scores (T,) of a metric. Raises TypeError if it is drawn at random, or an input that it needs is missing."""
    found = METRICS[metric]
    if found.score is None:
        raise TypeError(f"metric {metric!r} is drawn at random: use random_scores")
    for name, needed, value in (("stats", found.needs_stats, stats), (found.extra, found.extra is not None, extra)):
        if needed and value is None:
            raise TypeError(f"metric {metric!r} needs {name}")
    return found.score(stats, extra)  # type: ignore[arg-type]
