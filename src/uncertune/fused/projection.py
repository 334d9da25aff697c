"""One chunk of logits at a time: products in the model's precision, logits always in float32 (float64 for float64).

Shape legend: ``T`` response tokens, ``t`` the tokens of one chunk, ``V`` vocabulary, ``D`` hidden size.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

CHUNK_BYTES = 128 * 2**20
"""The one knob of memory: a chunk's logits take at most this many bytes (and a chunk at most ``CHUNK_ROWS`` rows)."""

CHUNK_ROWS = {"cpu": 128, "cuda": 1024}

_HALF = (torch.bfloat16, torch.float16)


@dataclass(frozen=True)
class TokenStats:
    """Per token, all (T,): ``loss`` = −log p(label) and ``entropy`` in nats, ``correct``: the label is the first
    most likely token."""

    loss: Tensor
    entropy: Tensor
    correct: Tensor


@dataclass(frozen=True)
class Projection:
    """Hidden states to logits, ``z = cap(scale · (hidden headᵀ + bias))``, and gradients back.

    ``compute`` is the precision of the products: that of autocast where it is on, else that of the hidden states.
    Half-precision products are accumulated and kept in float32. With ``rounded``, logits are rounded to ``compute``
    first and gradients are summed in plain float32 on the CPU too, which is what the usual trainers do.
    """

    head: Tensor
    bias: Tensor | None
    softcap: float | None
    scale: float
    compute: torch.dtype
    rounded: bool = False

    @classmethod
    def of(
        cls,
        hidden: Tensor,
        head: Tensor,
        bias: Tensor | None = None,
        softcap: float | None = None,
        scale: float = 1.0,
        rounded: bool = False,
        shared: Projection | None = None,
    ) -> Projection:
        """A projection in the precision in force; ``shared``: one whose prepared copy of the same head is taken."""
        device = hidden.device.type
        compute = hidden.dtype
        if torch.is_autocast_enabled(device) and compute != torch.float64:
            compute = torch.get_autocast_dtype(device)
        head = head.detach()
        if shared is not None and shared.compute == compute and not shared.rounded:
            head = shared.head
        elif compute in _HALF and device == "cpu" and not rounded:
            head = head.float()  # see _product: float32 storage, bfloat16 arithmetic
        else:
            head = head.to(compute)
        return cls(head, None if bias is None else bias.detach(), softcap, scale, compute, rounded and compute in _HALF)

    @property
    def exact(self) -> torch.dtype:
        """The precision of logits, losses and accumulated gradients."""
        return torch.float64 if self.compute == torch.float64 else torch.float32

    @property
    def vocabulary(self) -> int:
        return self.head.shape[0]

    def chunks(self, rows: int) -> Iterator[slice]:
        """Slices over ``rows`` tokens, each of a chunk whose logits fit ``CHUNK_BYTES``."""
        limit = CHUNK_ROWS.get(self.head.device.type, CHUNK_ROWS["cpu"])
        size = max(1, min(limit, CHUNK_BYTES // (4 * self.vocabulary)))
        for start in range(0, rows, size):
            yield slice(start, min(start + size, rows))

    def logits(self, hidden_tD: Tensor) -> Tensor:
        """The (t, V) logits of a chunk, a fresh tensor of the exact precision."""
        if self.rounded:
            z_tV = hidden_tD.to(self.compute) @ self.head.T
            z_tV = (z_tV if self.bias is None else z_tV.add_(self.bias.to(self.compute))).to(self.exact)
        else:
            z_tV = _product(hidden_tD, self.head.T, self.compute)
            if self.bias is not None:
                z_tV.add_(self.bias.to(self.exact))
        if self.scale != 1.0:
            z_tV.mul_(self.scale)
        if self.softcap is not None:
            z_tV.div_(self.softcap).tanh_().mul_(self.softcap)
        return z_tV

    def pull_back(self, grad_tV: Tensor, z_tV: Tensor | None) -> Tensor:
        """The gradient in the bare products, in place, from that in the logits; ``z_tV`` is needed with a soft-cap."""
        if self.softcap is not None:
            assert z_tV is not None
            grad_tV.mul_(1 - (z_tV / self.softcap).square_())
        if self.scale != 1.0:
            grad_tV.mul_(self.scale)
        return grad_tV

    def to_hidden(self, grad_tV: Tensor) -> Tensor:
        """The gradient in the hidden states (t, D) from that in the bare products."""
        return _product(grad_tV, self.head, self.compute, plain=self.rounded)

    def to_head(self, grad_tV: Tensor, hidden_tD: Tensor) -> Tensor:
        """The gradient in the head (V, D) from that in the bare products."""
        return _product(grad_tV.T, hidden_tD, self.compute, plain=self.rounded)


def _product(left: Tensor, right: Tensor, compute: torch.dtype, *, plain: bool = False) -> Tensor:
    """``left @ right`` with factors of precision ``compute``, accumulated and returned in float32 (or float64).

    ``plain``: on the CPU without ``_half_arithmetic``, whose sums run in another order.
    """
    if compute not in _HALF:
        return left.to(compute) @ right.to(compute)
    if left.device.type == "cpu":
        with contextlib.nullcontext() if plain else _half_arithmetic():
            return left.to(compute).float() @ right.to(compute).float()
    return torch.mm(left.to(compute), right.to(compute), out_dtype=torch.float32)


@contextlib.contextmanager
def _half_arithmetic() -> Iterator[None]:
    """CPU products of float32 tensors in bfloat16 with float32 sums: exact for factors that are bfloat16 already."""
    settings = getattr(torch.backends.mkldnn, "matmul", None)
    if settings is None:
        yield
        return
    before = settings.fp32_precision
    settings.fp32_precision = "bf16"
    try:
        yield
    finally:
        settings.fp32_precision = before
