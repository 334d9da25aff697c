"""The arms of the study: objective, selection and weights (SPEC S1 to S8)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from uncertune.selection import METRICS
from uncertune.selection.select import Level, Order

FRACTIONS = (0.05, 0.1, 0.25, 0.5, 0.75, 1.0)
NAMES = {
    "mle": "MLE",
    "masked_mle": "masked MLE",
    "distill": "distillation",
    "truncated_distill": "truncated distillation",
    "masked_mle_distill": "masked MLE + distillation",
    "policy_gradient": "policy gradient",
    "oracle": "oracle",
}


@dataclass(frozen=True)
class Arm:
    """An objective with its selection, its options, and noise weights (None: weight 1 for every token).

    ``reward`` is policy gradient's: ``aligned`` is A = p_oracle (App. B.1); ``right`` pays 1 for the most probable
    word and ``probability`` pays p_oracle, both as the expected policy gradient; ``sampled`` is ``right`` with one
    word drawn from the model. ``weighting`` is a token weighting, ``anchor`` the weight of KL to the pretrained model,
    ``members`` the number of averaged teachers, ``smoothing`` the label smoothing. ``teacher`` is stage 1 at its
    ``last`` epoch, or at its ``best``, that of the lowest loss on held-out texts.
    """

    objective: str
    metric: str = "loss"
    fraction: float = 0.25
    level: Level = "token"
    order: Order = "highest"
    options: Mapping[str, Any] = field(default_factory=dict)
    weights: str | None = None
    reward: str | None = None
    weighting: str = "none"
    anchor: float = 0.0
    members: int = 1
    smoothing: float = 0.0
    teacher: str = "last"

    @property
    def name(self) -> str:
        parts = [NAMES[self.objective]]
        if "masked" in self.objective:
            parts += [f"{self.metric} of {self.level}s", f"q {self.fraction:g}"]
            parts += [self.order] if self.order != "highest" else []
        parts += [str(self.options["truncation"])] if "truncation" in self.options else []
        parts += [f"weights {self.weights}"] if self.weights else []
        parts += [str(self.reward)] if self.reward else []
        parts += [self.weighting] if self.weighting != "none" else []
        parts += [f"smoothing {self.smoothing:g}"] if self.smoothing else []
        parts += [f"anchor {self.anchor:g}"] if self.anchor else []
        parts += [f"{self.members} members"] if self.members > 1 else []
        parts += [f"{self.teacher} teacher"] if self.teacher != "last" else []
        return ", ".join(parts)


MLE, DISTILL, ORACLE = Arm("mle"), Arm("distill"), Arm("oracle")
MASKED, BOTH = Arm("masked_mle"), Arm("masked_mle_distill")
TRUNCATED = tuple(
    Arm("truncated_distill", options={"top_k": 4, "truncation": form}) for form in ("plain", "renormalized", "tail")
)
WEIGHTED = tuple(Arm(one, weights=form) for one in ("mle", "masked_mle_distill") for form in ("1/variance", "clean"))
REWARDED = tuple(Arm("policy_gradient", reward=form) for form in ("aligned", "right", "probability", "sampled"))


def masked(objective: str) -> list[Arm]:
    """One masked objective over q (loss, tokens), and at 25 % with the other metrics and at document level."""
    out = [Arm(objective, fraction=fraction) for fraction in FRACTIONS]
    out += [Arm(objective, metric=metric) for metric in METRICS if metric != "loss"]
    return out + [Arm(objective, metric=metric, level="document") for metric in METRICS]


def table() -> list[Arm]:
    """Every objective: S1 to S8, S8 being masked MLE by BALD."""
    alone = [MLE, DISTILL, *TRUNCATED, *REWARDED, ORACLE, *WEIGHTED]
    return [*alone, *masked("masked_mle"), *masked("masked_mle_distill")]
