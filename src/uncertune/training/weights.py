"""The weights of eq. 1 for a micro-batch, from the configuration's fields and the batch's columns.

Shape legend: ``T`` response tokens of a micro-batch.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from uncertune.fused import Swept, TokenStats
from uncertune.objectives import OBJECTIVES, Targets, TeacherLike, anchored
from uncertune.training.batch import Tokens
from uncertune.training.config import UncertuneConfig
from uncertune.training.side_columns import side_information


def targets_of(
    args: UncertuneConfig,
    tokens: Tokens,
    selected: Tensor | None,
    teacher: TeacherLike | None,
    anchor: TeacherLike | None,
    stats: TokenStats | None,
) -> Targets:
    """The weights of a micro-batch. ``anchor`` is the last of the factored terms.

    ``stats`` are the student's for the same hidden states, which an importance ratio needs.
    """
    objective = OBJECTIVES[args.objective]
    given: dict[str, Any] = {"selected": selected, "teacher": teacher, **side_information(args, tokens, stats)}
    if "top_k" in objective.uses:
        given |= {"top_k": args.teacher_top_k, "truncation": args.teacher_truncation}
    if "token_weighting" in objective.uses:
        given |= args.label_options
    targets = objective(tokens.labels, **given)
    if anchor is not None:
        targets = anchored(targets, tokens.labels, anchor, args.anchor_weight)
    return targets.scaled(tokens.side["token_weight"]) if "token_weight" in tokens.side else targets


def anchor_measures(targets: Targets, swept: Swept) -> dict[str, Tensor]:
    """Sums over the tokens, on the device: the anchor's part of the loss, and KL(anchor ‖ model) in nats."""
    weight_T = targets.factored[-1].weight
    return {
        "anchor_loss": (weight_T * swept.cross_entropy[-1]).sum(),
        "anchor_kl": swept.divergence[-1].sum(),
    }
