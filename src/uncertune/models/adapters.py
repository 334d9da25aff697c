"""Switching between the adapters of a PEFT model."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from torch import nn


def unwrapped(model: nn.Module) -> Any:
    """The PEFT model or transformers model inside DDP and similar wrappers."""
    inner: Any = model
    while not hasattr(inner, "peft_config") and hasattr(inner, "module"):
        inner = inner.module
    return inner


@contextlib.contextmanager
def active_adapter(model: nn.Module, name: str | None) -> Iterator[None]:
    """Switch to another adapter, or with None to the bare base; switch back on exit.

    Every parameter keeps its ``requires_grad``, so use the model without gradient inside the block.
    """
    peft_model = unwrapped(model)
    before = peft_model.active_adapter
    with contextlib.ExitStack() as stack:
        if name is None:
            disabled = peft_model.disable_adapter()
            _keep_trainable(peft_model, disabled.__enter__)
            stack.callback(_keep_trainable, peft_model, lambda: disabled.__exit__(None, None, None))
        else:
            _keep_trainable(peft_model, lambda: peft_model.set_adapter(name, inference_mode=True))
            stack.callback(_keep_trainable, peft_model, lambda: peft_model.set_adapter(before, inference_mode=True))
        yield


def _keep_trainable(peft_model: Any, switch: Any) -> None:
    """Restore ``requires_grad`` at once after PEFT switches adapters, which changes it: FSDP2 copies the flag to the
    parameters that it gathers in a forward pass."""
    parameters = list(peft_model.parameters())
    trainable = [parameter.requires_grad for parameter in parameters]
    switch()
    for parameter, flag in zip(parameters, trainable, strict=True):
        parameter.requires_grad_(flag)
