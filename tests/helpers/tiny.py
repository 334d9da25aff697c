"""Models and a tokenizer small enough to build in every test: two layers, random weights, bytes for words.

model = tiny_model("gemma2")            # in eval mode, float32, weights depend on `seed` alone
tokenizer = tiny_tokenizer()            # one token a byte, ChatML in SmolLM2's shape
save_tiny(folder, "llama")              # a folder that from_pretrained and the command line load
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

WIDTH = 32

_ROTARY = {
    "hidden_size": WIDTH,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
}
_GEMMA = {**_ROTARY, "head_dim": 8}

# kind → (model_type of transformers, its configuration). The notes say what each adds to a plain linear head.
_CONFIGS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {**_ROTARY, "tie_word_embeddings": True}),
    "gemma": ("gemma", _GEMMA),
    "gemma2": ("gemma2", {**_GEMMA, "final_logit_softcapping": 0.5, "query_pre_attn_scalar": 8, "sliding_window": 16}),
    "gemma3": ("gemma3_text", {**_GEMMA, "query_pre_attn_scalar": 8, "sliding_window": 16}),
    "phi3": ("phi3", {**_ROTARY, "tie_word_embeddings": False}),
    "qwen2": ("qwen2", {**_ROTARY, "tie_word_embeddings": False}),
    "qwen3": ("qwen3", {**_ROTARY, "head_dim": 8}),
    "cohere": ("cohere", {**_ROTARY, "logit_scale": 0.25}),
    "granite": ("granite", {**_ROTARY, "logits_scaling": 4.0}),
    "mixtral": ("mixtral", {**_ROTARY, "num_local_experts": 4, "output_router_logits": True}),  # auxiliary loss
    "phi": ("phi", {**_ROTARY, "partial_rotary_factor": 0.5}),  # bias on the head
    "gpt2": ("gpt2", {"n_embd": WIDTH, "n_layer": 2, "n_head": 4, "n_positions": 512}),  # Conv1D layers
}
KINDS = tuple(_CONFIGS)


def tiny_model(
    kind: str, vocab_size: int = 97, dtype: torch.dtype = torch.float32, seed: int = 0, **overrides: Any
) -> PreTrainedModel:
    """A random causal LM of ``kind`` in eval mode; ``overrides`` go into its configuration. Global RNG untouched."""
    model_type, fields = _CONFIGS[kind]
    tokens = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}
    config = CONFIG_MAPPING[model_type](**{**fields, **tokens, "vocab_size": vocab_size, **overrides})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        for parameter in model.parameters():
            # The library's start is nearly constant logits; these are as uneven as a trained model's.
            scale = 0.2 if parameter.dim() > 1 else 0.1
            parameter.data.add_(scale * torch.randn_like(parameter))
    return model.to(dtype).eval()


IM_START, IM_END, PAD = "<|im_start|>", "<|im_end|>", "<|pad|>"

_SYSTEM = "You are a helpful AI assistant."
_HEAD_OF_TEMPLATE = (
    "{% for message in messages %}"
    "{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\n" + _SYSTEM + "<|im_end|>\n' }}"
    "{% endif %}"
)
_TAIL_OF_TEMPLATE = "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
TEMPLATE = (
    _HEAD_OF_TEMPLATE
    + "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}"
    + _TAIL_OF_TEMPLATE
)
MARKED_TEMPLATE = (
    _HEAD_OF_TEMPLATE
    + "{{'<|im_start|>' + message['role'] + '\n'}}"
    + "{% if message['role'] == 'assistant' %}"
    + "{% generation %}{{message['content'] + '<|im_end|>'}}{% endgeneration %}"
    + "{% else %}{{message['content'] + '<|im_end|>'}}{% endif %}{{'\n'}}"
    + _TAIL_OF_TEMPLATE
)


def tiny_tokenizer(folder: str | Path | None = None, *, marked: bool = False) -> PreTrainedTokenizerFast:
    """256 bytes, then ``<|im_start|>`` 256, ``<|im_end|>`` 257 (end of text) and ``<|pad|>`` 258: 259 ids.

    The chat template renders as SmolLM2's does, ``marked`` with generation tags around what the assistant says.
    Saved in ``folder`` where one is given.
    """
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE(vocab={letter: index for index, letter in enumerate(alphabet)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(token, special=True) for token in (IM_START, IM_END, PAD)])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token=IM_START,
        eos_token=IM_END,
        pad_token=PAD,
        model_max_length=512,
        chat_template=MARKED_TEMPLATE if marked else TEMPLATE,
    )
    if folder is not None:
        tokenizer.save_pretrained(str(folder))
    return tokenizer


def save_tiny(folder: str | Path, kind: str = "llama", *, marked: bool = False, **model_options: Any) -> Path:
    """Write a tiny model and its tokenizer into ``folder`` and return it.

    Loaded again, the tokenizer is the same for every kind but qwen2, where transformers puts its own class around it
    and adds an ``<|endoftext|>`` that the model has no row for.
    """
    tokenizer = tiny_tokenizer(folder, marked=marked)
    ids = {
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    tiny_model(kind, **{"vocab_size": len(tokenizer), **ids, **model_options}).save_pretrained(str(folder))
    return Path(folder)
