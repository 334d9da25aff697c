"""Documents in one row: architectures that keep them apart, and those that do not."""

import pytest
import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM

from helpers.tiny import KINDS, tiny_model, tiny_tokenizer
from uncertune import UncertuneConfig, UncertuneTrainer
from uncertune.errors import UserError
from uncertune.models.packing import verify_packing

SHARED = {"vocab_size": 97, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}
LEAKING = {
    "opt": {
        "hidden_size": 32,
        "ffn_dim": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "word_embed_proj_dim": 32,
    },
    "bloom": {"hidden_size": 32, "n_layer": 2, "n_head": 4},
    "falcon": {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "alibi": True},
    "mpt": {"d_model": 32, "n_layers": 2, "n_heads": 4},
    "biogpt": {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4},
    "mamba": {"hidden_size": 32, "num_hidden_layers": 2, "state_size": 4},
}


def leaking(kind, vocab_size=97):
    config = CONFIG_MAPPING[kind](**{**SHARED, **LEAKING[kind], "vocab_size": vocab_size})
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    for parameter in model.parameters():
        parameter.data.add_(0.1 * torch.randn_like(parameter))
    return model


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", KINDS)
def test_documents_are_apart(kind, dtype):
    model = tiny_model(kind, dtype=dtype).train()
    verify_packing(model)
    assert model.training


@pytest.mark.parametrize("kind", LEAKING)
def test_a_leak_is_refused(kind):
    with pytest.raises(
        UserError, match=r"attend to the one packed before it .*: set packing and padding_free to false"
    ):
        verify_packing(leaking(kind))


@pytest.mark.parametrize("fields", [{"packing": True, "max_length": 64}, {"padding_free": True, "max_length": None}])
def test_the_trainer_refuses_it(tmp_path, fields):
    from datasets import Dataset

    tokenizer = tiny_tokenizer()
    rows = Dataset.from_list([{"text": "one"}, {"text": "two and three"}])
    model = leaking("opt", len(tokenizer))

    def build(**fields):
        args = UncertuneConfig(str(tmp_path), use_cpu=True, bf16=False, report_to="none", **fields)
        return UncertuneTrainer(model, args, train_dataset=rows, processing_class=tokenizer)

    with pytest.raises(UserError, match="OPTForCausalLM lets a document attend"):
        build(**fields)
    build()
