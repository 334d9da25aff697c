"""Projection of hidden states to products, and its gradients, one chunk of tokens at a time.

Shape legend: ``T`` response tokens, ``t`` the tokens of one chunk, ``V`` vocabulary, ``D`` hidden size.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Literal

import torch
from torch import Tensor

from uncertune.fused.elementwise import exact_dtype, finished
from uncertune.objectives.head import Finish, Head

LOGITS_BYTES = {"cpu": 512 * 2**20, "cuda": 4 * 2**30}
"""Memory limit: logits of a chunk take at most half of it, logits stored by scoring the rest. A larger chunk reads the
head less often (a GPU needs a thousand rows and more at a vocabulary of 100 thousand); more stored logits save a
projection. On an H100, distillation of 8192 tokens with 4 GiB takes 0.92 (vocabulary 128,256) and 0.81 (49,152) times
as long as with 2 GiB, and ``mle`` as long (``python -m tools.gpu.choices``)."""

LOGITS_SHARE = 16
"""The logits take at most one part in so many of a GPU's memory: 4 GiB of 80 GB, 1.5 GiB of 24 GB."""

CHUNK_ROWS = {"cpu": 256, "cuda": 4096}
"""Most rows of a chunk: more are not faster. A trained head takes four times as many, to update its gradient less
often."""

LARGE_VOCABULARY = 16384
"""Size from which rounding the products (``offset``) and compiling the element-wise functions pay off on a CPU."""

_HALF = (torch.bfloat16, torch.float16)

_WIDENED_ROWS = 8192
"""Rows of a half-precision head that are converted to float32 at a time."""

Rounding = Literal["exact", "offset", "plain"]


@dataclass(frozen=True)
class TokenStats:
    """Per token, all (T,): ``loss`` = −log p(label) and ``entropy`` in nats; ``correct``: the label is the first most
    likely token."""

    loss: Tensor
    entropy: Tensor
    correct: Tensor


@dataclass(frozen=True)
class Projection:
    """Hidden states to logits, ``z = cap(scale · (hidden headᵀ + bias))``, and gradients back.

    ``compute`` is the precision of the products' factors: autocast's, else that of the hidden states. Sums are always
    in float32; ``rounding`` says in what precision half-precision products are stored:

    exact    float32. On the CPU, where PyTorch has no product of half-precision factors with a float32 result, the
             factors are float32 copies.
    offset   half precision, relative to one logit of each token, its label's or the largest: a softmax does not
             depend on a common offset, so the error is 2⁻⁹ of the distance from a likely token instead of 2⁻⁹ of the
             logit.
    plain    half precision, and gradients in float32, as TRL: for equality with it digit for digit.
    """

    head: Tensor
    finish: Finish
    compute: torch.dtype
    rounding: Rounding
    rounded_bias: Tensor | None = None
    """Under ``plain`` the bias is added to the products and rounded with them."""

    @classmethod
    def of(
        cls,
        hidden: Tensor,
        head: Head,
        rounding: Rounding = "exact",
    ) -> Projection:
        """A projection in the current precision; ``offset`` becomes ``exact`` if that is cheap: CUDA, small heads."""
        device, compute = hidden.device.type, hidden.dtype
        if torch.is_autocast_enabled(device) and compute != torch.float64:
            compute = torch.get_autocast_dtype(device)
        cheap = device != "cpu" or head.vocabulary < LARGE_VOCABULARY
        if compute not in _HALF or (rounding == "offset" and cheap):
            rounding = "exact"
        widened = rounding == "exact" and compute in _HALF and device == "cpu"
        head = head.detached()
        weight = head.weight.to(torch.float32 if widened else compute)
        if rounding == "plain" and head.bias is not None:
            return cls(weight, head.finish._replace(bias=None), compute, rounding, head.bias.to(compute))
        return cls(weight, head.finish, compute, rounding)

    @property
    def exact(self) -> torch.dtype:
        """The precision of logits, losses and accumulated gradients."""
        return exact_dtype(self.compute)

    @property
    def stored(self) -> torch.dtype:
        """The precision in which products are stored."""
        return self.exact if self.rounding == "exact" else self.compute

    @property
    def vocabulary(self) -> int:
        return self.head.shape[0]

    def chunk_rows(self, *, train_head: bool = False, teacher: bool = False, mixture: bool = False) -> int:
        """Tokens of a chunk: its products, a teacher's, their gradient and a mixture fit half of ``logits_bytes``."""
        limit = of_device(CHUNK_ROWS, self.head.device) * (4 if train_head else 1)
        row_bytes = self._row_bytes(teacher, mixture)
        return max(1, min(limit, logits_bytes(self.head.device) // 2 // row_bytes))

    def kept_rows(self) -> int:
        """Tokens whose products may be kept beside the buffers of a chunk with a teacher."""
        buffers = self.chunk_rows(teacher=True) * self._row_bytes(True, False)
        return (logits_bytes(self.head.device) - buffers) // (self.vocabulary * self.stored.itemsize)

    def _row_bytes(self, teacher: bool, mixture: bool) -> int:
        """Of the buffers of a chunk, for each of its tokens; the gradient is written over products of its type."""
        apart = self.head.dtype != self.stored
        items = self.stored.itemsize * (1 + teacher) + self.head.dtype.itemsize * apart + self.exact.itemsize * mixture
        return self.vocabulary * items

    def chunks(self, rows: int) -> Iterator[slice]:
        """Slices over ``rows`` tokens, of ``chunk_rows`` each."""
        size = self.chunk_rows()
        for start in range(0, rows, size):
            yield slice(start, min(start + size, rows))

    def offset(self, hidden_tD: Tensor, labels_t: Tensor) -> Tensor | None:
        """The reference logit of each token (t,), before bias and scale, rounded so that ``products`` can take it."""
        if self.rounding != "offset":
            return None
        label_rows_tD = self.head.index_select(0, labels_t).to(self.exact)
        reference_t = torch.linalg.vecdot(hidden_tD.to(self.compute).to(self.exact), label_rows_tD)
        return reference_t.to(self.compute).to(self.exact)

    def products(self, hidden_tD: Tensor, offset_t: Tensor | None = None, out: Tensor | None = None) -> Tensor:
        """``hidden headᵀ − offset`` (t, V) in precision ``stored``, in ``out`` if given."""
        hidden_tD = hidden_tD.to(self.compute)
        if self.rounding == "exact" and self.compute in _HALF:
            if hidden_tD.device.type == "cpu":
                return torch.mm(hidden_tD.float(), self.head.T, out=out)
            return torch.mm(hidden_tD, self.head.T, out_dtype=torch.float32, out=out)
        if offset_t is None:
            raw_tV = torch.mm(hidden_tD, self.head.T, out=out)
            return raw_tV if self.rounded_bias is None else raw_tV.add_(self.rounded_bias)
        return torch.addmm(-offset_t.to(self.compute)[:, None], hidden_tD, self.head.T, out=out)

    def logits(self, hidden_tD: Tensor) -> Tensor:
        """The (t, V) logits of a chunk, in the exact precision."""
        return finished(self.products(hidden_tD), None, self.finish)

    def to_hidden(self, grad_tV: Tensor) -> Tensor:
        """The gradient of the hidden states (t, D) from that of the products; a CPU rounds it to half precision."""
        if not self._widens(grad_tV):
            grad_tV = grad_tV.to(self.head.dtype)
            if self.head.dtype in _HALF and grad_tV.device.type == "cuda":
                return torch.mm(grad_tV, self.head, out_dtype=torch.float32)
            return torch.mm(grad_tV, self.head)
        out_tD = grad_tV.new_zeros(grad_tV.shape[0], self.head.shape[1], dtype=torch.float32)
        for grad_tv, head_vD in zip(grad_tV.split(_WIDENED_ROWS, 1), self.head.split(_WIDENED_ROWS), strict=True):
            out_tD.addmm_(grad_tv.to(self.compute).float(), head_vD.float())
        return out_tD

    def add_to_head(self, total_VD: Tensor, grad_tV: Tensor, hidden_tD: Tensor) -> None:
        """Add the gradient of the head to ``total`` (V, D), in the exact precision."""
        left, right = grad_tV.T.to(self.head.dtype), hidden_tD.to(self.compute).to(self.head.dtype)
        if self._widens(grad_tV):
            left, right = left.float(), right.float()
        if left.dtype == total_VD.dtype:
            torch.addmm(total_VD, left, right, out=total_VD)
        elif left.device.type == "cuda":
            torch.addmm(total_VD, left, right, out_dtype=total_VD.dtype, out=total_VD)
        else:
            total_VD += torch.mm(left, right)

    def _widens(self, grad_tV: Tensor) -> bool:
        """Whether a CPU sums a half-precision gradient in float32 and keeps it so, as TRL does (``plain``)."""
        return self.rounding == "plain" and grad_tV.device.type == "cpu"


def of_device(table: Mapping[str, int], device: torch.device) -> int:
    """The entry of a table by kind of device, like ``LOGITS_BYTES``; a kind that is not listed counts as a CPU."""
    return table.get(device.type, table["cpu"])


def logits_bytes(device: torch.device) -> int:
    """Most bytes of logits in memory at a time: ``LOGITS_BYTES``, on a GPU at most its memory over ``LOGITS_SHARE``."""
    most = of_device(LOGITS_BYTES, device)
    return min(most, _memory(device) // LOGITS_SHARE) if device.type == "cuda" else most


@cache
def _memory(device: torch.device) -> int:
    """All bytes of a GPU, used or not."""
    return int(torch.cuda.get_device_properties(device).total_memory)
