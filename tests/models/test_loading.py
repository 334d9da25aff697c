"""A damaged or untrusted model folder is one line that names the file; nothing trains on random weights."""

import json
import pickle
import shutil

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file

from helpers.harness import rows, settings
from helpers.tiny import save_tiny, tiny_model
from uncertune import UncertuneTrainer
from uncertune.errors import UserError
from uncertune.models import load_adapter, load_model, load_tokenizer

WEIGHTS = "model.safetensors"


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return save_tiny(tmp_path_factory.mktemp("loading") / "base", marked=True)


@pytest.fixture
def folder(base, tmp_path):
    return shutil.copytree(base, tmp_path / "model")


def change_weights(folder, change):
    weights = load_file(folder / WEIGHTS)
    change(weights, sorted(weights)[3])
    save_file(weights, folder / WEIGHTS, metadata={"format": "pt"})


def lose(weights, name):
    del weights[name]


def shrink(weights, name):
    weights[name] = weights[name][:5].contiguous()


LACKS = [(lose, "lack 1 tensors"), (shrink, "have another shape")]


@pytest.mark.parametrize(("change", "says"), LACKS, ids=["missing", "shape"])
def test_a_model_that_lacks_tensors_is_refused(folder, tmp_path, change, says):
    change_weights(folder, change)
    with pytest.raises(UserError, match=f"{says}.*gate_proj"):
        load_model(str(folder))
    with pytest.raises(UserError, match=f"{says}.*gate_proj"):
        UncertuneTrainer(str(folder), settings(tmp_path / "run"), train_dataset=rows())


JUNK = [b"", b"[]", b'"text"', b"\xff\x00\x01", b"{"]


@pytest.mark.parametrize("content", JUNK)
@pytest.mark.parametrize("name", ["config.json", "generation_config.json", "tokenizer_config.json", "tokenizer.json"])
def test_a_damaged_file_is_named(folder, name, content):
    (folder / name).write_bytes(content)
    with pytest.raises(UserError, match=f"{name}' (is damaged|cannot be read)"):
        load_tokenizer(str(folder))
    with pytest.raises(UserError, match=f"{name}' (is damaged|cannot be read)"):
        load_model(str(folder))


def test_damaged_weights_and_indices_are_named(folder):
    whole = (folder / WEIGHTS).read_bytes()
    for content in (*JUNK, whole[:100], whole[: len(whole) // 2]):
        (folder / WEIGHTS).write_bytes(content)
        with pytest.raises(UserError, match=r"model\.safetensors' is damaged"):
            load_model(str(folder))
    (folder / WEIGHTS).unlink()
    for index in ({}, {"weight_map": []}, {"weight_map": {"a": 3}}, {"weight_map": {"a": "../b"}}):
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
        with pytest.raises(UserError, match=r"model.safetensors.index.json' (is damaged|names)"):
            load_model(str(folder))


class Hostile:
    """Writes a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (self.path, "w")


def test_a_pickle_needs_a_flag_and_a_hostile_one_never_runs(folder, tmp_path):
    weights = load_file(folder / WEIGHTS)
    (folder / WEIGHTS).unlink()
    torch.save(weights, folder / "pytorch_model.bin")
    with pytest.raises(UserError, match=r"pytorch_model\.bin' is a pickle.*--allow_pickle"):
        load_model(str(folder))
    assert load_model(str(folder), allow_pickle=True).config.model_type == "llama"
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps({"a": Hostile(str(tmp_path / "ran"))}))
    with pytest.raises(UserError, match="cannot be loaded"):
        load_model(str(folder), allow_pickle=True)
    assert not (tmp_path / "ran").exists()


def test_adapters_are_checked_alike(base, tmp_path):
    adapter = tmp_path / "adapter"
    get_peft_model(load_model(str(base)), LoraConfig(r=2, target_modules=["q_proj"])).save_pretrained(adapter)
    assert load_adapter(load_model(str(base)), adapter).peft_config
    weights = load_file(adapter / "adapter_model.safetensors")
    with pytest.raises(UserError, match="does not fit the model"):
        load_adapter(tiny_model("gpt2"), adapter)
    name = sorted(weights)[0]
    save_file({key: value for key, value in weights.items() if key != name}, adapter / "adapter_model.safetensors")
    with pytest.raises(UserError, match=r"does not fit the model.*missing adapter keys"):
        load_adapter(load_model(str(base)), adapter)
    (adapter / "adapter_model.safetensors").write_bytes(b"junk")
    with pytest.raises(UserError, match=r"adapter_model\.safetensors' is damaged"):
        load_adapter(load_model(str(base)), adapter)
    (adapter / "adapter_model.safetensors").unlink()
    torch.save(weights, adapter / "adapter_model.bin")
    with pytest.raises(UserError, match=r"adapter_model\.bin' is a pickle"):
        load_adapter(load_model(str(base)), adapter)
    assert load_adapter(load_model(str(base)), adapter, allow_pickle=True).peft_config
