"""How vLLM is driven: one engine, adapters by request. A stand-in for vLLM: the real one needs a GPU."""

import importlib.util
import json
import sys
import types

import pytest

from uncertune.errors import UserError
from uncertune.evaluation.answering import VLLMModels

pytest.importorskip("lm_eval")


def test_adapters_are_requests_to_one_engine(tmp_path, monkeypatch):
    class Engine:
        def __init__(self, **options):
            self.options, self.lora_request = options, None

    def module(name, **content):
        made = types.ModuleType(name)
        vars(made).update(content)
        made.__spec__ = types.SimpleNamespace(name=name)
        monkeypatch.setitem(sys.modules, name, made)

    module("vllm")
    module("vllm.lora")
    module("vllm.lora.request", LoRARequest=lambda *fields: fields)
    module("lm_eval.models.vllm_causallms", VLLM=Engine)
    folders = []
    for name, rank in (("a", 8), ("b", 20)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "adapter_config.json").write_text(json.dumps({"r": rank}))
        folders.append(str(tmp_path / name))
    models = VLLMModels("base", dtype="auto", seed=1, folders=folders, template="{{ messages }}")
    assert models.lm.options["max_lora_rank"] == 32
    assert models.lm.options["enable_lora"]
    with models.active(folders[1]):
        assert models.lm.lora_request == (folders[1], 2, folders[1])
    with models.active(None):
        assert models.lm.lora_request is None


@pytest.mark.skipif(importlib.util.find_spec("vllm") is not None, reason="vllm is installed")
def test_without_vllm_one_line_says_so():
    with pytest.raises(UserError, match="vllm is not installed"):
        VLLMModels("base", dtype="auto", seed=1, folders=[], template=None)
