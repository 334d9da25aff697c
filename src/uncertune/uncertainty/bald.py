"""Uncertainty of tokens under an ensemble, streamed, without an S × T × V tensor.

    aleatoric = E_θ[H[p_θ]]        total = H[E_θ[p_θ]]        epistemic = total − aleatoric  ≥ 0

in nats, per token (Houlsby et al. 2011, BALD; SPEC S18). Logits and their exponentials are float32, every sum float64,
which reduces the error of the difference of two entropies from about 1e-6 to 1e-8. No Hugging Face package is imported.

Shape legend: ``S`` samples, ``T`` tokens, ``t`` those of one chunk, ``V`` vocabulary, ``D`` hidden size.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal, Protocol

import torch
from torch import Tensor

from uncertune.fused.kernels import CompiledFunction, in_blocks
from uncertune.fused.projection import LARGE_VOCABULARY
from uncertune.objectives.head import Head, finish_logits

CHUNK_BYTES = {"cpu": 128 * 2**20, "cuda": 1024 * 2**20}
"""Most bytes of a chunk's logits and probabilities; a chunk has at least one token."""

_LOGIT, _SUM = 4, 8  # bytes of an entry: logits are float32, sums of probabilities float64

_ROUNDING = 1e-7  # nats; exponentials in float32 leave errors of up to 1e-8

_HALF = (torch.bfloat16, torch.float16)


@dataclass(frozen=True)
class Decomposition:
    """Per token, float64 (T,), in nats. ``total == aleatoric + epistemic`` to the last bit."""

    total: Tensor
    aleatoric: Tensor
    epistemic: Tensor


@dataclass(frozen=True, eq=False)
class Logits:
    """Hidden states (t, D) → logits (t, V) in float32: ``head.logits(hidden)``.

    Products are in the precision of the hidden states; the head's weight must be prepared for it (``Logits.of``).
    """

    head: Head

    @classmethod
    def of(cls, head: Head, *, like: Tensor) -> Logits:
        """``head`` for hidden states of the type of ``like``; half precision is widened on the CPU."""
        head = head.detached()
        weight = head.weight.to(like.dtype)
        if like.dtype in _HALF and weight.device.type == "cpu":
            weight = weight.float()
        return cls(replace(head, weight=weight))

    @property
    def weight(self) -> Tensor:
        """(V, D)."""
        return self.head.weight

    def __call__(self, hidden_tD: Tensor) -> Tensor:
        with torch.autocast(hidden_tD.device.type, enabled=False):
            if self.weight.dtype in _HALF:
                products_tV = torch.mm(hidden_tD, self.weight.T, out_dtype=torch.float32)
            else:
                products_tV = hidden_tD.to(self.weight.dtype) @ self.weight.T
            return finish_logits(products_tV, self.head.finish)

    def chunks(self, tokens: int) -> Iterator[slice]:
        """Slices over ``tokens`` tokens: logits of one sample and sums within ``CHUNK_BYTES``."""
        yield from _slices(tokens, max(1, self._entries() // (_LOGIT + _SUM)))

    def samples_at_once(self, tokens: int) -> int:
        """How many samples of a chunk of ``tokens`` tokens go through the head as one product."""
        return max(1, (self._entries() - _SUM * tokens) // (_LOGIT * tokens))

    def _entries(self) -> int:
        """Bytes of ``CHUNK_BYTES`` for each entry of the vocabulary."""
        return CHUNK_BYTES.get(self.weight.device.type, CHUNK_BYTES["cpu"]) // self.weight.shape[0]


class Accumulator(Protocol):
    """An accumulator of the hidden states (T, D) of one sample after the other, then of the decomposition."""

    def add(self, hidden_TD: Tensor, logits: Logits) -> None: ...

    def finish(self) -> Decomposition: ...


class KeptHidden:
    """Strategy (a): the hidden states of all samples, S × T × D; ``finish`` applies the shared head to them."""

    def __init__(self) -> None:
        self._hidden: list[Tensor] = []
        self._logits: Logits | None = None

    def add(self, hidden_TD: Tensor, logits: Logits) -> None:
        self._hidden.append(hidden_TD)
        self._logits = logits

    def finish(self) -> Decomposition:
        if self._logits is None:
            raise ValueError("no sample was added")
        return decompose(self._hidden, self._logits)


class StreamedSums:
    """Strategy (b): Σ_s p_s, float64 (T, V), and Σ_s H[p_s]; samples are not kept, and heads may differ."""

    def __init__(self) -> None:
        self._chunks: list[_Moments] = []

    def add(self, hidden_TD: Tensor, logits: Logits) -> None:
        slices = list(logits.chunks(hidden_TD.shape[0]))
        self._chunks = self._chunks or [_Moments() for _ in slices]
        for moments, chunk in zip(self._chunks, slices, strict=True):
            moments.add(logits(hidden_TD[chunk]))

    def finish(self) -> Decomposition:
        return _joined([moments.finish() for moments in self._chunks])


@dataclass(frozen=True)
class Plan:
    """What is stored of a document while samples come: ``keep`` names it, for ``tokens`` tokens at a time.

    Further tokens form another piece, for which every forward pass is repeated with the same seeds.
    """

    keep: Literal["hidden", "sums"]
    tokens: int
    token_bytes: int

    @classmethod
    def of(
        cls, tokens: int, samples: int, width: int, vocabulary: int, itemsize: int, memory: int, shared_head: bool
    ) -> Plan:
        """The plan with the fewest forward passes for ``tokens`` tokens within ``memory`` bytes.

        Hidden states take S · D · ``itemsize`` bytes per token, sums 8 · V; if both need equally many passes, hidden
        states are stored. Without a shared head only sums are possible.
        """
        plans: list[Plan] = [cls("sums", max(1, memory // (8 * vocabulary)), 8 * vocabulary)]
        if shared_head:
            token_bytes = samples * width * itemsize
            plans.insert(0, cls("hidden", max(1, memory // token_bytes), token_bytes))
        return min(plans, key=lambda plan: -(-tokens // plan.tokens))

    def accumulator(self) -> Accumulator:
        return KeptHidden() if self.keep == "hidden" else StreamedSums()

    def pieces(self, tokens: int) -> Iterator[slice]:
        """Slices over a document's tokens, independent of other documents."""
        yield from _slices(tokens, self.tokens)


def decompose(hidden_STD: Tensor | Sequence[Tensor], logits: Logits) -> Decomposition:
    """The decomposition from the hidden states of all samples, one chunk of tokens after the other, each (T,).

    Equals, with p = softmax(logits) in float64 over V, ``entr(p.mean(0)).sum(-1)`` and ``entr(p).sum(-1).mean(0)``.
    """
    parts = []
    for chunk in logits.chunks(hidden_STD[0].shape[0]):
        moments = _Moments()
        tokens = chunk.stop - chunk.start
        for samples in _slices(len(hidden_STD), logits.samples_at_once(tokens)):
            together = torch.cat([hidden_TD[chunk] for hidden_TD in hidden_STD[samples]])
            for logits_tV in logits(together).split(tokens):
                moments.add(logits_tV)
        parts.append(moments.finish())
    return _joined(parts)


def decompose_members(hidden_STD: Sequence[Tensor], logits_S: Sequence[Logits]) -> Decomposition:
    """``decompose`` for members with separate heads, one chunk of tokens after the other; hidden sizes may differ."""
    parts = []
    for chunk in logits_S[0].chunks(hidden_STD[0].shape[0]):
        moments = _Moments()
        for hidden_TD, logits in zip(hidden_STD, logits_S, strict=True):
            moments.add(logits(hidden_TD[chunk]))
        parts.append(moments.finish())
    return _joined(parts)


class _Moments:
    """Sums over the samples of one chunk of tokens, in float64."""

    def __init__(self) -> None:
        self._samples = 0
        self._probs_tV: Tensor
        self._entropy_t: Tensor

    def add(self, logits_tV: Tensor) -> None:
        if logits_tV.device.type == "mps":  # without float64
            logits_tV = logits_tV.cpu()
        if not self._samples:
            self._probs_tV = torch.zeros_like(logits_tV, dtype=torch.float64)
            self._entropy_t = self._probs_tV.new_zeros(logits_tV.shape[0])
        large = logits_tV.shape[-1] >= LARGE_VOCABULARY and logits_tV.dtype != torch.float64
        if large:
            _compiled_add()(logits_tV, self._probs_tV, self._entropy_t)
        else:
            in_blocks(_add, logits_tV, self._probs_tV, self._entropy_t)
        self._samples += 1

    def finish(self) -> Decomposition:
        """Negative epistemic values down to −1e-7 are rounding and become 0; lower values stay visible."""
        aleatoric_t = self._entropy_t / self._samples
        difference_t = torch.special.entr(self._probs_tV / self._samples).sum(-1) - aleatoric_t
        rounding = (difference_t < 0) & (difference_t >= -_ROUNDING)
        epistemic_t = torch.where(rounding, 0.0, difference_t)
        return Decomposition(aleatoric_t + epistemic_t, aleatoric_t, epistemic_t)


def _add(logits_tV: Tensor, probs_tV: Tensor, entropy_t: Tensor) -> None:
    """Add softmax(logits) to ``probs_tV`` and its entropy to ``entropy_t``, both float64, in place."""
    z_tV = logits_tV - logits_tV.amax(-1, keepdim=True)
    z_tV = z_tV.clamp(min=-800.0)  # exp gives 0 from there on, and 0 · −∞ would be NaN
    exp_tV = z_tV.exp()
    norm_t = exp_tV.sum(-1, dtype=torch.float64)
    # H = log Σ exp z − Σ p z needs no logarithm of V numbers
    entropy_t += (norm_t.log() - (exp_tV * z_tV).sum(-1, dtype=torch.float64) / norm_t).clamp(min=0.0)
    probs_tV += exp_tV.double() / norm_t[:, None]


@functools.cache
def _compiled_add() -> CompiledFunction:
    return CompiledFunction(_add)


def _joined(parts: Sequence[Decomposition]) -> Decomposition:
    if not parts:
        nothing = torch.empty(0, dtype=torch.float64)
        return Decomposition(nothing, nothing, nothing)
    return Decomposition(
        torch.cat([part.total for part in parts]),
        torch.cat([part.aleatoric for part in parts]),
        torch.cat([part.epistemic for part in parts]),
    )


def _slices(total: int, size: int) -> Iterator[slice]:
    for start in range(0, total, size):
        yield slice(start, min(start + size, total))
