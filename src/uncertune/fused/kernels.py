"""Choice of the implementation of ``elementwise``: Triton kernels, compiled, or plain.

Small vocabularies and float64 run plain, since compiling costs more than it saves. On CUDA the Triton kernels run if
Triton is installed. Otherwise ``torch.compile`` fuses each function into one pass; if it fails (on a CPU it needs a C++
compiler and Python's headers), one warning says so, and the plain functions give the same results.
``TORCH_COMPILE_DISABLE=1``, PyTorch's switch, disables compiling.
"""

from __future__ import annotations

import functools
import importlib.util
import warnings
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from uncertune.fused import elementwise, projection

PLAIN_BYTES = 8 * 2**20
"""Bytes of logits in a block of rows of the plain functions on a CPU, so that a block stays in its cache."""

FUNCTIONS = ("statistics", "teacher_statistics", "mean_logit", "add_probabilities", "gradient", "taught_gradient")


def kernels(raw: Tensor) -> Any:
    """The functions of ``elementwise`` in their best form for products like ``raw``."""
    if raw.shape[-1] < projection.LARGE_VOCABULARY or raw.dtype == torch.float64:
        return elementwise
    if raw.device.type == "cuda" and importlib.util.find_spec("triton") is not None:
        import uncertune.fused.triton as by_hand

        return by_hand
    return _compiled()


@functools.cache
def _compiled() -> SimpleNamespace:
    return SimpleNamespace(**{name: CompiledFunction(getattr(elementwise, name)) for name in FUNCTIONS})


class CompiledFunction:
    """A function under ``torch.compile``, or the plain function after the first failure."""

    works = True

    def __init__(self, function: Callable[..., Any]) -> None:
        self.plain = function
        self.fast = torch.compile(function, dynamic=True)

    def __call__(self, raw: Tensor, *args: Any) -> Any:
        if CompiledFunction.works:
            try:
                return self.fast(raw, *args)
            except torch.OutOfMemoryError:
                raise
            except Exception as error:  # any error of a compiler: the plain function gives the same result
                result = in_blocks(self.plain, raw, *args)
                CompiledFunction.works = False
                reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
                warnings.warn(
                    f"torch.compile does not work here ({reason}): the uncompiled functions run instead, slower, with "
                    "the same results; on a CPU it needs a C++ compiler and Python's headers",
                    stacklevel=2,
                )
                return result
        return in_blocks(self.plain, raw, *args)


def in_blocks(function: Callable[..., Any], raw: Tensor, *args: Any) -> Any:
    """``function`` applied to blocks of rows; every tensor with as many rows as ``raw`` is split with it."""
    rows = raw.shape[0]
    size = max(1, PLAIN_BYTES // (4 * raw.shape[-1]))
    if raw.device.type != "cpu" or rows <= size:
        return function(raw, *args)

    def cut(value: Any, block: slice) -> Any:
        if isinstance(value, elementwise.Teacher):
            return value._replace(raw=value.raw[block])
        return value[block] if isinstance(value, Tensor) else value

    blocks = [slice(start, start + size) for start in range(0, rows, size)]
    parts = [function(raw[block], *(cut(value, block) for value in args)) for block in blocks]
    return None if parts[0] is None else tuple(torch.cat(column) for column in zip(*parts, strict=True))
