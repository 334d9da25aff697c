"""Which adapters of a model are saved."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from typing import Any


@contextlib.contextmanager
def student_adapter_only(model: Any) -> Iterator[None]:
    """While a model with several adapters is saved, only its active one is: the student's."""
    if len(getattr(model, "peft_config", {})) < 2:
        yield
        return
    chosen: Any = functools.partial(type(model).save_pretrained, model, selected_adapters=[model.active_adapter])
    model.__dict__["save_pretrained"] = chosen
    try:
        yield
    finally:
        del model.__dict__["save_pretrained"]
