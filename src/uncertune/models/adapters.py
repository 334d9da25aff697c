"""Adapters of a PEFT model by name."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from torch import nn


def unwrapped(model: nn.Module) -> Any:
    """The PEFT model or transformers model inside DDP and its like."""
    inner: Any = model
    while not hasattr(inner, "peft_config") and hasattr(inner, "module"):
        inner = inner.module
    return inner


@contextlib.contextmanager
def active_adapter(model: nn.Module, name: str) -> Iterator[None]:
    """Another adapter switched on, frozen; the student's own is restored, trainable as before."""
    peft_model = unwrapped(model)
    before = peft_model.active_adapter
    trainable = {id(parameter) for parameter in peft_model.parameters() if parameter.requires_grad}
    peft_model.set_adapter(name, inference_mode=True)
    try:
        yield
    finally:
        peft_model.set_adapter(before, inference_mode=True)
        for parameter in peft_model.parameters():
            parameter.requires_grad_(id(parameter) in trainable)
