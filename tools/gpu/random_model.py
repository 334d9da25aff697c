"""Models of usual shapes with random weights: ``python -m tools.gpu.random_model SHAPE FOLDER TOKENIZER``.

Times and memory do not depend on the weights. The tokenizer is the small model's, for every shape.
"""

from __future__ import annotations

import sys

import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from uncertune.models import resolve_model

SHAPES = {
    "smollm2": {
        "vocab_size": 49152,
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
    },
    "llama-3.2-1b": {
        "vocab_size": 128256,
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_hidden_layers": 16,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
    },
}


def main(shape: str, folder: str, tokenizer: str) -> None:
    words = AutoTokenizer.from_pretrained(resolve_model(tokenizer))
    special = {
        "bos_token_id": words.bos_token_id,
        "eos_token_id": words.eos_token_id,
        "pad_token_id": words.pad_token_id,
    }
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        config = LlamaConfig(**SHAPES[shape], **special, tie_word_embeddings=True, max_position_embeddings=8192)
        model = LlamaForCausalLM(config).to(torch.bfloat16)
    model.save_pretrained(folder)
    words.save_pretrained(folder)
    print(f"{folder}: {sum(p.numel() for p in model.parameters()) / 1e9:.3f} billion parameters")


if __name__ == "__main__":
    main(*sys.argv[1:])
