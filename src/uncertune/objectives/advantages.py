"""Advantages from rewards, and their clipping by an importance ratio: weights of eq. 1 (SPEC S6).

Shape legend: ``N`` answers, ``T`` response tokens.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import torch
from torch import Tensor

STD_FLOOR = 1e-4
"""Added to a group's standard deviation, as TRL's ``GRPOTrainer`` does."""


def group_advantages(
    rewards: Tensor | Sequence[float], groups: Tensor | Sequence[Hashable], *, scale: bool = True
) -> Tensor:
    """GRPO's advantages of N answers: each reward against the answers of its group, (N,) float32 or float64.

    ``A_i = (r_i − mean) / (std + 1e-4)`` over the group of i, std with N − 1 in the denominator (DeepSeekMath; TRL's
    ``scale_rewards="group"``). ``scale=False`` leaves out the division, which favours questions that are nearly always
    or nearly never answered (Dr. GRPO). ``groups`` has the group of each answer, usually the question's number: N
    labels of any kind, in any order. A group whose rewards are all equal, or that has one answer, has advantages of 0.

    Raises ValueError where lengths differ or a reward is not finite.
    """
    rewards = torch.as_tensor(rewards)
    rewards = rewards if rewards.is_floating_point() else rewards.float()
    names = groups.tolist() if isinstance(groups, Tensor) else list(groups)
    if rewards.dim() != 1 or len(names) != len(rewards):
        raise ValueError(f"rewards must be (N,) and groups as long, got {tuple(rewards.shape)} and {len(names)}")
    if not bool(rewards.isfinite().all()):
        raise ValueError(f"rewards must be finite, got {rewards[~rewards.isfinite()][0].item()}")
    number: dict[Hashable, int] = {}
    index = torch.tensor([number.setdefault(name, len(number)) for name in names], dtype=torch.long)
    index = index.to(rewards.device)

    def over_group(values: Tensor, how: str = "sum") -> Tensor:
        """Each answer's group's sum, highest or lowest value."""
        return rewards.new_zeros(len(number)).scatter_reduce(0, index, values, how, include_self=False)[index]

    count = over_group(torch.ones_like(rewards))
    centred = rewards - over_group(rewards) / count
    flat = over_group(rewards, "amax") == over_group(rewards, "amin")
    centred = centred.masked_fill(flat, 0.0)  # without the rounding error of the mean
    if not scale:
        return centred
    return centred / ((over_group(centred.square()) / (count - 1).clamp(min=1)).sqrt() + STD_FLOOR)


def clipped_advantage(advantages: Tensor, log_ratio: Tensor, low: float = 0.2, high: float | None = None) -> Tensor:
    """The weight that gives eq. 1 the gradient of PPO's clipped surrogate ``min(r A, clip(r, 1 − low, 1 + high) A)``.

    That is ``r · A``, and 0 where the clip binds; r = exp(log_ratio), both (T,), detached. ``high`` defaults to
    ``low``.
    """
    ratio = log_ratio.detach().exp()
    binds = clip_binds(advantages, ratio, low, high)
    return torch.where(binds, torch.zeros_like(ratio), ratio * advantages.detach())


def clip_binds(advantages: Tensor, ratio: Tensor, low: float = 0.2, high: float | None = None) -> Tensor:
    """(T,) bool: where the clip binds, so that the clipped surrogate is constant."""
    high = low if high is None else high
    return ((advantages > 0) & (ratio > 1 + high)) | ((advantages < 0) & (ratio < 1 - low))
