"""Side columns on their way into the weights: advantages, their importance ratio and its clip, the oracle.

Shape legend: ``T`` response tokens of a micro-batch.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from uncertune.fused import TokenStats, linear_token_stats
from uncertune.objectives import OBJECTIVES, FactoredTeacher, TeacherLike, clip_binds, clipped_advantage
from uncertune.training.batch import Tokens
from uncertune.training.config import UncertuneConfig

OLD = "old_log_probs"


def has_ratio(tokens: Tokens) -> bool:
    """Whether the data tells with which probability each token was sampled."""
    return OLD in tokens.side


def has_columns(args: UncertuneConfig, tokens: Tokens) -> bool:
    """Whether the batch holds the columns that the objective needs; evaluation data may lack them."""
    needs = OBJECTIVES[args.objective].needs
    return all(name in tokens.side for name in ("advantages", "oracle") if name in needs)


def side_information(args: UncertuneConfig, tokens: Tokens, stats: TokenStats | None) -> dict[str, Any]:
    """The objective's keywords that come from side columns.

    ``stats`` are the student's own for the same hidden states: with ``old_log_probs`` an advantage A becomes
    ``clipped_advantage``, r · A or 0, with r = p(y) / p_old(y), a constant in the gradient.
    """
    given: dict[str, Any] = {}
    for name in ("advantages", "oracle"):
        if name in OBJECTIVES[args.objective].uses:
            ids = tokens.side.get(f"{name}_ids")
            given[name] = tokens.side[name] if ids is None else (ids, tokens.side[name])
    if has_ratio(tokens):
        assert stats is not None
        ratio_T = _log_ratio(tokens, stats)
        given["advantages"] = clipped_advantage(given["advantages"], ratio_T, args.epsilon, args.epsilon_high)
    if args.objective == "policy_gradient" and args.beta:
        given["beta"] = args.beta
    return given


def measures(args: UncertuneConfig, tokens: Tokens, stats: TokenStats, teacher: TeacherLike | None) -> dict[str, float]:
    """Sums over the tokens, of what a step of policy gradient is judged by.

    ``importance_ratio``; ``clipped_fraction``, of tokens whose gradient the clip has taken; ``kl``, from the model to
    the teacher, estimated on the sampled tokens as exp(d) − d − 1 with d = log p_ref(y) − log p(y), which is what
    GRPO reports.
    """
    out: dict[str, float] = {}
    if has_ratio(tokens):
        ratio_T = _log_ratio(tokens, stats).exp()
        binds_T = clip_binds(tokens.side["advantages"], ratio_T, args.epsilon, args.epsilon_high)
        out = {"importance_ratio": float(ratio_T.sum()), "clipped_fraction": float(binds_T.sum())}
    if isinstance(teacher, FactoredTeacher):
        theirs = linear_token_stats(teacher.hidden, teacher.head, tokens.labels)
        difference_T = stats.loss.detach() - theirs.loss
        out["kl"] = float((difference_T.exp() - difference_T - 1).sum())
    return out


def _log_ratio(tokens: Tokens, stats: TokenStats) -> Tensor:
    """log p(y) − log p_old(y), (T,)."""
    return (-stats.loss - tokens.side[OLD].to(stats.loss.dtype)).detach()
