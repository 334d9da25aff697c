"""Models as the rest of the package needs them.

names      a hub id, a folder, a GGUF file or the short name ``smollm2-135m`` → what ``from_pretrained`` takes
head       the last linear map of a causal LM as numbers, and a forward that stops before it
adapters   one adapter of several switched on for a while
identity   a fingerprint of the base model
loading    models, tokenizers and adapters, checked while they are loaded
"""

from uncertune.models.adapters import active_adapter, unwrapped
from uncertune.models.head import (
    attach_head,
    attached_head,
    causal_lm,
    has_weights,
    head_shape,
    output_head,
    verify_head,
    whole,
)
from uncertune.models.identity import added_parameters, fingerprint
from uncertune.models.loading import checked_in_trl, load_adapter, load_model, load_tokenizer
from uncertune.models.names import cache_folder, resolve_model

__all__ = [
    "active_adapter",
    "added_parameters",
    "attach_head",
    "attached_head",
    "cache_folder",
    "causal_lm",
    "checked_in_trl",
    "fingerprint",
    "has_weights",
    "head_shape",
    "load_adapter",
    "load_model",
    "load_tokenizer",
    "output_head",
    "resolve_model",
    "unwrapped",
    "verify_head",
    "whole",
]
