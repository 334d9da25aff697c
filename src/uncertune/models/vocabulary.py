"""Resizing a base model to the vocabulary that an adapter was trained with.

Training with another model's chat template can add tokens, and TRL then cuts an embedding that has more rows than the
tokenizer; the adapter's file holds the output head of that size.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from uncertune.errors import UserError
from uncertune.models.head import causal_lm


def saved_rows(model: Any, folder: str | Path) -> int | None:
    """Rows of the embedding (or the output head) in an adapter's file; None if it has neither."""
    from safetensors import safe_open

    file = Path(folder) / "adapter_model.safetensors"
    if not file.is_file():
        return None
    lm = causal_lm(model)
    layers = {id(layer) for layer in (lm.get_input_embeddings(), lm.get_output_embeddings()) if layer is not None}
    prefixes = tuple(f"base_model.model.{name}." for name, layer in lm.named_modules() if id(layer) in layers)
    rows = []
    with safe_open(file, framework="pt") as tensors:
        for name in tensors.keys():  # noqa: SIM118 (not a mapping)
            shape = tensors.get_slice(name).get_shape()
            if name.startswith(prefixes) and name.endswith(".weight") and "lora_" not in name and len(shape) == 2:
                rows.append(int(shape[0]))
    return max(rows, default=None)


def added_rows(model: Any, folder: str | Path) -> int:
    """How many rows the adapter's embedding or head has more than the model's; below 0 where it has fewer."""
    rows = saved_rows(model, folder)
    return 0 if rows is None else rows - int(causal_lm(model).get_input_embeddings().weight.shape[0])


def fit_vocabulary(model: Any, folder: str | Path) -> int:
    """Resize ``model`` to the adapter in ``folder``, whose file has the new rows; return the number of added rows.

    Raises UserError for a model with other adapters, which would not fit after resizing.
    """
    added = added_rows(model, folder)
    if not added:
        return 0
    if hasattr(model, "peft_config"):
        raise UserError(
            f"adapter {str(folder)!r} was trained with {abs(added)} {'more' if added > 0 else 'fewer'} tokens than the "
            "model has, and the model already carries another adapter: load it on a copy of the base"
        )
    rows = model.get_input_embeddings().weight.shape[0] + added
    model.resize_token_embeddings(rows, mean_resizing=False)  # the adapter's file holds new rows
    return added
