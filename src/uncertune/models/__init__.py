"""Loading causal language models, their output head, and their adapters.

names      from a hub id, a folder, a GGUF file or the short name ``smollm2-135m`` to an argument of ``from_pretrained``
head       the output head of a causal LM, and a forward that stops before it
adapters   switching between adapters
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
from uncertune.models.loading import checked_in_trl, fast_dtype, load_adapter, load_model, load_tokenizer
from uncertune.models.names import cache_folder, resolve_model, shared_name

__all__ = [
    "active_adapter",
    "added_parameters",
    "attach_head",
    "attached_head",
    "cache_folder",
    "causal_lm",
    "checked_in_trl",
    "fast_dtype",
    "fingerprint",
    "has_weights",
    "head_shape",
    "load_adapter",
    "load_model",
    "load_tokenizer",
    "output_head",
    "resolve_model",
    "shared_name",
    "unwrapped",
    "verify_head",
    "whole",
]
