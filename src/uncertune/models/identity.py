"""Fingerprints of base models."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator

import torch
from torch import nn

from uncertune.models.head import causal_lm, gathered, whole

_SAMPLES = 64

# Fields that may differ between two loads of one model: its origin, how it runs, ids that a trainer writes.
_VOLATILE = frozenset(
    (
        *("name_or_path", "transformers_version", "architectures", "problem_type", "id2label", "label2id"),
        *("dtype", "torch_dtype", "use_cache", "gradient_checkpointing", "return_dict"),
        *("output_attentions", "output_hidden_states", "output_router_logits"),
        *("bos_token_id", "eos_token_id", "pad_token_id"),
    )
)


def fingerprint(model: nn.Module, *, as_dtype: torch.dtype | None = None) -> str:
    """Sixteen hex digits of the base model: configuration, names and shapes of parameters, a sample of their values.

    At least 64 values of every parameter count, at equal strides (all of them if it has fewer). Adapters do not count:
    a model has the same fingerprint before and after PEFT wraps it. A change of other values is not detected.
    With ``as_dtype``, the fingerprint is that of ``model.to(as_dtype)``.
    """
    lm = causal_lm(model)
    digest = hashlib.sha256(json.dumps(_settled(lm.config.to_dict()), sort_keys=True, default=str).encode())
    samples = []
    for name, parameter in _base_parameters(lm):
        with gathered(parameter):
            digest.update(f"{name}{tuple(parameter.shape)}".encode())
            values = whole(parameter.detach()).reshape(-1)
            sample = values[:: max(1, values.numel() // _SAMPLES)]
            samples.append(sample.to(as_dtype or sample.dtype).float().cpu())
    for sample in samples:
        digest.update(sample.numpy().tobytes())
    return digest.hexdigest()[:16]


def added_parameters(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """What PEFT has added to the base model, by name: adapters of every kind, ``modules_to_save``, trained tokens."""
    lm = causal_lm(model)
    base = {id(parameter) for _, parameter in _base_parameters(lm)}
    return ((name, parameter) for name, parameter in lm.named_parameters() if id(parameter) not in base)


def _settled(config: dict) -> dict:
    return {
        key: _settled(value) if isinstance(value, dict) else value
        for key, value in config.items()
        if key not in _VOLATILE and not key.startswith("_")
    }


def _base_parameters(lm: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Parameter names without PEFT's prefixes, in order, without the adapters' parameters."""
    added = [
        f"{place}.{part}" if place else part
        for place, module in lm.named_modules()
        for part in (*getattr(module, "adapter_layer_names", ()), *getattr(module, "other_param_names", ()))
        if hasattr(module, "base_layer") or hasattr(module, "original_module")
    ]
    prefixes = tuple(f"{name}." for name in added)
    exact = frozenset(added)
    found = {}
    for name, parameter in lm.named_parameters():
        if name not in exact and not name.startswith(prefixes):
            found[
                name.replace(".base_layer.", ".").replace(".original_module.", ".").replace(".token_adapter.", ".")
            ] = parameter
    return iter(sorted(found.items()))
