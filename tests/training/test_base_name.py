"""A base that a package carries is named by its hub id in what a run leaves, and found here without the hub."""

import json
from pathlib import Path

import pytest
import yaml
from peft import PeftModel
from transformers import AutoModelForCausalLM

from helpers.tiny import save_tiny
from uncertune.cli import main
from uncertune.evaluation.models import load_models
from uncertune.models import names, resolve_model, shared_name
from uncertune.models.loading import base_model_of

HUB = "HuggingFaceTB/SmolLM2-135M-Instruct"


@pytest.fixture
def carried(tmp_path, monkeypatch):
    """A tiny model in the place of the dense copy of the GGUF file that the package carries."""
    monkeypatch.setenv("UNCERTUNE_CACHE", str(tmp_path / "cache"))
    gguf = tmp_path / "SmolLM2.gguf"
    gguf.write_bytes(b"GGUF")
    monkeypatch.setattr(names, "_carried_gguf", lambda: gguf)
    folder = names._dense_folder(gguf)
    folder.parent.mkdir(parents=True)
    return save_tiny(folder, marked=True)


def test_a_run_names_the_hub_and_loads_without_it(carried, tmp_path):
    (tmp_path / "rows.jsonl").write_text(json.dumps({"prompt": "Hi", "completion": " there"}) * 1 + "\n")
    settings = {
        "model_name_or_path": "smollm2-135m",
        "dataset_name": str(tmp_path / "rows.jsonl"),
        "objective": "masked_mle_distill",
        "teacher": "auto",
        "max_steps": 1,
        "use_cpu": True,
        "use_peft": True,
        "lora_r": 2,
        "output_dir": str(tmp_path / "out"),
    }
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(settings))
    assert main(["train", "--config", str(tmp_path / "run.yaml")]) == 0
    out = tmp_path / "out"
    for folder in (out, out / "stage1", out / "checkpoint-1"):
        assert json.loads((folder / "adapter_config.json").read_text())["base_model_name_or_path"] == HUB
        assert base_model_of(folder) == "smollm2-135m"
    assert f"base_model: {HUB}\n" in (out / "README.md").read_text()
    loaded = load_models([str(out)])
    assert (loaded.base, Path(loaded.path)) == ("smollm2-135m", carried)
    assert main(["merge", str(out), "--output_dir", str(tmp_path / "merged")]) == 0
    PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(carried), str(out))


def test_other_names_stay(carried, tmp_path):
    assert resolve_model("smollm2-135m") == str(carried)
    assert shared_name(str(carried)) == HUB
    assert [shared_name(one) for one in (HUB, "a/b", str(tmp_path))] == [HUB, "a/b", str(tmp_path)]
    (tmp_path / "alone").mkdir()
    (tmp_path / "alone" / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": HUB}))
    assert base_model_of(tmp_path / "alone") == HUB
