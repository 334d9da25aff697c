"""A model of Llama-3.2-1B's shape with random weights: ``python -m tools.gpu.random_model FOLDER``.

Times and memory do not depend on the weights. The tokenizer is the small model's.
"""

from __future__ import annotations

import sys

import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from uncertune.models import resolve_model

SHAPE = {
    "vocab_size": 128256,
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_hidden_layers": 16,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "tie_word_embeddings": True,
}


def main(folder: str, small_model: str = "smollm2-135m") -> None:
    tokenizer = AutoTokenizer.from_pretrained(resolve_model(small_model))
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        model = LlamaForCausalLM(LlamaConfig(**SHAPE)).to(torch.bfloat16)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    print(f"{folder}: {sum(p.numel() for p in model.parameters()) / 1e9:.2f} billion parameters")


if __name__ == "__main__":
    main(*sys.argv[1:])
