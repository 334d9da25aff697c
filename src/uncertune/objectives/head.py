"""The output head, from last hidden states to logits: the only definition of logits in this package.

Shape legend: ``T`` tokens, ``V`` vocabulary, ``D`` hidden size, ``K`` entries kept of ``V``.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor


class Finish(NamedTuple):
    """The steps from products ``hidden weightᵀ`` to logits: ``bias`` (V,), ``scale`` and ``softcap`` of a head."""

    bias: Tensor | None = None
    scale: float = 1.0
    softcap: float | None = None


def finish_logits(products: Tensor, finish: Finish) -> Tensor:
    """``z = cap(scale · (products + bias))`` with ``cap(u) = softcap · tanh(u / softcap)``, or u without a soft-cap.

    ``products`` is (T, V), or (T, K) with ``finish.bias`` of that shape; the result has its dtype. Without bias, scale
    and soft-cap the result is ``products`` itself.
    """
    u = products
    if finish.bias is not None:
        u = u + finish.bias.to(u.dtype)
    if finish.scale != 1.0:
        u = u * finish.scale
    return u if finish.softcap is None else finish.softcap * torch.tanh(u / finish.softcap)


def slope(logits: Tensor, finish: Finish) -> Tensor | float:
    """dz / d(products), from the logits z."""
    return finish.scale if finish.softcap is None else finish.scale * (1 - (logits / finish.softcap).square())


@dataclass(frozen=True, eq=False)
class Head:
    """The map from last hidden states to logits: ``z = cap(scale · (hidden weightᵀ + bias))``.

    ``cap(u) = softcap · tanh(u / softcap)``, or u where ``softcap`` is None. ``weight`` is (V, D) and ``bias`` (V,).
    A model's head shares the model's tensors, so gradients reach them.
    """

    weight: Tensor
    bias: Tensor | None = None
    softcap: float | None = None
    scale: float = 1.0

    @property
    def vocabulary(self) -> int:
        """V."""
        return self.weight.shape[0]

    @property
    def finish(self) -> Finish:
        """The steps after the product with ``weight``."""
        return Finish(self.bias, self.scale, self.softcap)

    def detached(self) -> Head:
        """The same head, constant in the gradient."""
        bias = None if self.bias is None else self.bias.detach()
        return replace(self, weight=self.weight.detach(), bias=bias)

    def logits(self, hidden: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        """(T, D) → (T, V) by the definition above, in ``dtype`` (default: the weight's), for small vocabularies."""
        weight = self.weight if dtype is None else self.weight.to(dtype)
        return finish_logits(torch.nn.functional.linear(hidden.to(weight.dtype), weight), self.finish)
