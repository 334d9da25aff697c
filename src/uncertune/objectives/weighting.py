"""Token weightings: functions from the student's statistics of a token to a weight of the label's term (SPEC B9).

Each takes a ``TokenView`` of T tokens and its parameters, and returns (T,) weights of at least 0, constants in the
gradient. The configuration field ``name_x`` sets the parameter ``x`` of the weighting ``name``.

Shape legend: ``T`` response tokens, ``V`` vocabulary.
"""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class TokenView:
    """The input of a weighting, all detached.

    ``log_prob`` (T,) is log p(label) and ``entropy`` (T,) that of the whole distribution, in nats; ``top_logits(k)``
    returns the k largest logits of each token, (T, min(k, V)).
    """

    log_prob: Tensor
    entropy: Tensor
    top_logits: Callable[[int], Tensor]


Weighting = Callable[[TokenView], Tensor]


def none(view: TokenView) -> Tensor:
    """1: every token counts alike."""
    return torch.ones_like(view.log_prob)


def dft(view: TokenView) -> Tensor:
    """Dynamic fine-tuning: the probability p of the label (Wu et al. 2025, arXiv:2508.05629)."""
    return view.log_prob.exp()


def eaft(view: TokenView, *, top_k: int = 20, alpha: float = 1.0) -> Tensor:
    """Entropy-adaptive fine-tuning: ``(H_k / log k)^alpha`` (arXiv:2601.02151).

    H_k is the entropy of the ``top_k`` most probable tokens, renormalised to sum to 1.
    """
    z_Tk = view.top_logits(top_k)
    log_probs_Tk = z_Tk.log_softmax(-1)
    entropy_T = -(log_probs_Tk.exp() * log_probs_Tk).sum(-1)
    return (entropy_T.clamp(min=0) / math.log(z_Tk.shape[-1])) ** alpha


def infosft(view: TokenView, *, cutoff: float = 0.93) -> Tensor:
    """InfoSFT: ``max(0, p · (C − log(p / (1 − p))))`` with C = log(cutoff / (1 − cutoff)) (arXiv:2605.14967).

    p is the current model's probability of the label; the weight is 0 for p ≥ ``cutoff``.
    """
    log_p = view.log_prob.clamp(max=0)
    log_odds = log_p - torch.log(-torch.expm1(log_p))
    weight = log_p.exp() * (math.log(cutoff / (1 - cutoff)) - log_odds)
    return weight.clamp(min=0)


def focal(view: TokenView, *, gamma: float = 2.0) -> Tensor:
    """Focal loss: ``(1 − p)^gamma`` (Lin et al. 2017, arXiv:1708.02002)."""
    return (-torch.expm1(view.log_prob.clamp(max=0))) ** gamma


TOKEN_WEIGHTINGS: dict[str, Callable[..., Tensor]] = {
    function.__name__: function for function in (none, dft, eaft, infosft, focal)
}


def parameters(name: str) -> dict[str, Any]:
    """The parameters of a weighting and their defaults."""
    signature = inspect.signature(TOKEN_WEIGHTINGS[name])
    return {one.name: one.default for one in signature.parameters.values() if one.kind is one.KEYWORD_ONLY}


def token_weighting(name: str, options: Mapping[str, Any] | None = None) -> Weighting | None:
    """The weighting ``name`` with its parameters; None for ``none``.

    Raises ValueError for an unknown name or parameters out of range, TypeError for unknown parameters.
    """
    if name not in TOKEN_WEIGHTINGS:
        raise ValueError(f"token_weighting must be one of {', '.join(TOKEN_WEIGHTINGS)}; got {name!r}")
    given = dict(options or {})
    for key, value in given.items():
        if key not in parameters(name):
            raise TypeError(f"token weighting {name!r} has no parameter {key!r}")
        _check(f"{name}_{key}", value)
    return None if name == "none" else functools.partial(TOKEN_WEIGHTINGS[name], **given)


_RANGES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "eaft_top_k": (lambda value: value >= 2, "at least 2: one token has no entropy"),
    "eaft_alpha": (lambda value: value >= 0, "at least 0"),
    "infosft_cutoff": (lambda value: 0 < value < 1, "in (0, 1), a probability"),
    "focal_gamma": (lambda value: value >= 0, "at least 0"),
}


def _check(name: str, value: Any) -> None:
    accepts, wanted = _RANGES.get(name, (lambda _: True, ""))
    if not accepts(value):
        raise ValueError(f"{name} must be {wanted}; got {value}")
