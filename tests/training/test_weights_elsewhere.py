"""Weights that are not on this rank yet: empty models that FSDP fills later, and the parts of DeepSpeed ZeRO-3.

Neither can run here, so the ranks and parts are made by hand; what they do to a head's gradient cannot be, and is
refused.
"""

from __future__ import annotations

import contextlib
import sys
from importlib.machinery import ModuleSpec
from types import ModuleType, SimpleNamespace

import pytest
import torch
from accelerate.state import AcceleratorState, PartialState
from peft import LoraConfig, get_peft_model
from trl import SFTTrainer

from helpers.harness import VOCABULARY, rows, run
from helpers.tiny import tiny_model
from helpers.two_processes import two_processes
from uncertune.errors import UserError
from uncertune.models import fingerprint, has_weights, head_shape, verify_head
from uncertune.teachers.fingerprints import teacher_fingerprint
from uncertune.training import devices

LORA = {"r": 4, "target_modules": ["q_proj", "v_proj"], "task_type": "CAUSAL_LM"}


def adapted(**more):
    torch.manual_seed(3)
    return get_peft_model(tiny_model("phi"), LoraConfig(init_lora_weights=False, **LORA, **more))


# ---- fsdp_cpu_ram_efficient_loading: the first rank reads the model, the others hold shapes


def on_ranks(path: str):
    model = get_peft_model(tiny_model("phi"), LoraConfig(**LORA))
    if PartialState(cpu=True).process_index > 0:
        model = model.to("meta")
    verify_head(model)
    asked = devices.as_main_process(lambda: teacher_fingerprint(path, model))
    base = devices.as_main_process(lambda: fingerprint(model))
    try:
        devices.as_main_process(lambda: teacher_fingerprint("no/such/folder", model))
        refusal = ""
    except UserError as error:
        refusal = str(error)
    return has_weights(model), asked, base, refusal


def test_ranks_without_weights_take_the_first_ones_fingerprints(tmp_path):
    adapted().save_pretrained(str(tmp_path / "teacher"))
    first, second = two_processes(on_ranks, str(tmp_path / "teacher"), tmp_path / "two")
    assert (first[0], second[0]) == (True, False)
    assert first[1:3] == second[1:3]
    whole = get_peft_model(tiny_model("phi"), LoraConfig(**LORA))
    assert first[1:3] == (teacher_fingerprint(str(tmp_path / "teacher"), whole), fingerprint(tiny_model("phi")))
    assert "no/such/folder" in first[3]
    assert first[3] == second[3]


# ---- ZeRO-3


@pytest.fixture
def parts(monkeypatch):
    """A stand-in for DeepSpeed: parameters are empty but within ``GatheredParameters``."""

    class Gathered(contextlib.AbstractContextManager):
        def __init__(self, parameters):
            self.parameters = parameters

        def __enter__(self):
            for one in self.parameters:
                one.data, one.ds_status = one.ds_whole, "available"

        def __exit__(self, *_):
            for one in self.parameters:
                one.data, one.ds_status = torch.empty(0), "away"

    names = ("deepspeed", "deepspeed.runtime", "deepspeed.runtime.zero", "deepspeed.runtime.zero.partition_parameters")
    for name in names:
        module = ModuleType(name)
        module.__spec__ = ModuleSpec(name, None)
        monkeypatch.setitem(sys.modules, name, module)
    sys.modules["deepspeed"].zero = SimpleNamespace(GatheredParameters=Gathered)
    sys.modules[names[-1]].ZeroParamStatus = SimpleNamespace(AVAILABLE="available")
    monkeypatch.setattr("transformers.integrations.deepspeed.is_deepspeed_zero3_enabled", lambda: True)

    def part(model):
        for number, one in enumerate(model.parameters()):
            one.ds_id, one.ds_whole, one.ds_shape, one.ds_status = number, one.data, one.shape, "away"
            one.data = torch.empty(0)
        return model

    return part


def test_a_model_in_parts_is_the_whole_one(parts):
    model = parts(tiny_model("phi"))
    assert fingerprint(model) == fingerprint(tiny_model("phi"))
    assert fingerprint(model) != fingerprint(tiny_model("phi", seed=1))
    assert head_shape(model) == head_shape(tiny_model("phi"))
    assert all(parameter.numel() == 0 for parameter in model.parameters())
    verify_head(model)  # nothing to check it on


@pytest.mark.parametrize("lora", [False, {"modules_to_save": ["lm_head"]}], ids=["full", "trained head"])
def test_zero3_with_a_trained_head_is_refused(tmp_path, monkeypatch, lora):
    init = SFTTrainer.__init__

    def launched(self, *args, **kwargs):
        init(self, *args, **kwargs)
        monkeypatch.setattr(AcceleratorState, "deepspeed_plugin", property(lambda _: SimpleNamespace(zero_stage=3)))

    monkeypatch.setattr(SFTTrainer, "__init__", launched)
    with pytest.raises(UserError, match="zero_stage: 3 with a trained output head"):
        run(tmp_path, data=rows(), kind="qwen2", lora=lora)


def test_zero3_takes_a_frozen_head():
    state = SimpleNamespace(deepspeed_plugin=SimpleNamespace(zero_stage=3))
    accelerator = SimpleNamespace(
        state=state, parallelism_config=None, num_processes=2, even_batches=True, mixed_precision="no"
    )
    devices.check(accelerator, adapted(), average_tokens=True)
    state.deepspeed_plugin.zero_stage = 2
    devices.check(accelerator, tiny_model("phi", VOCABULARY), average_tokens=True)
    state.deepspeed_plugin.zero_stage = 3
    padded = adapted()
    padded.config.unpadded_vocab_size = 90
    with pytest.raises(UserError, match="padding rows"):
        devices.check(accelerator, padded, average_tokens=True)
