"""Adapters of the tiny model, and plain logits to compare with."""

import torch
from peft import LoraConfig, get_peft_model

from helpers.harness import VOCABULARY
from helpers.tiny import tiny_model


def adapter(folder, *, seed=3, rank=4, kind="llama", **options):
    """An adapter on the tiny model with weights that matter, saved as a folder."""
    config = {"r": rank, "lora_alpha": 8, "target_modules": "all-linear", "task_type": "CAUSAL_LM", **options}
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = get_peft_model(tiny_model(kind, VOCABULARY), LoraConfig(**config, init_lora_weights=False))
    model.save_pretrained(str(folder))
    return str(folder)


def plain_logits(model, row):
    """Logits of one row's response tokens, from the model's ordinary forward, and their labels."""
    ids, labels = torch.tensor(row["input_ids"]), torch.tensor(row["labels"])
    model.eval()
    with torch.no_grad():
        z = model(input_ids=ids[None], use_cache=False).logits[0, :-1]
    keep = labels[1:] != -100
    return z[keep], labels[1:][keep]
