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
    """Another adapter switched on, then the one before again. What is trainable stays so: use it without gradient."""
    peft_model = unwrapped(model)
    before = peft_model.active_adapter
    _switch(peft_model, name)
    try:
        yield
    finally:
        _switch(peft_model, before)


def _switch(peft_model: Any, name: str) -> None:
    """PEFT freezes every adapter here, and each parameter's ``requires_grad`` is given back at once: FSDP2 copies it
    to what it gathers in a forward pass, and what is gathered then keeps it."""
    parameters = list(peft_model.parameters())
    trainable = [parameter.requires_grad for parameter in parameters]
    peft_model.set_adapter(name, inference_mode=True)
    for parameter, flag in zip(parameters, trainable, strict=True):
        parameter.requires_grad_(flag)
