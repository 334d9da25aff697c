"""Each model is used with the tokenizer, template, stops and vocabulary that it was trained with."""

import contextlib
import gc
import json
import shutil
import weakref

import pyarrow.parquet as pq
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from helpers.tiny import MARKED_TEMPLATE, save_tiny, tiny_tokenizer
from uncertune.cli import main
from uncertune.errors import UserError
from uncertune.evaluation.evaluate import measure
from uncertune.evaluation.generate import answer, stop_tokens
from uncertune.evaluation.models import load_models
from uncertune.models import active_adapter, load_model
from uncertune.models.loading import load_adapter
from uncertune.training import pipeline

OTHER_TEMPLATE = MARKED_TEMPLATE.replace("You are a helpful AI assistant.", "Answer in one word.")
ROWS = [
    {"messages": [{"role": "user", "content": f"Say {n}"}, {"role": "assistant", "content": f"It is {n}."}]}
    for n in range(4)
]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return str(path)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder = tmp_path_factory.mktemp("base") / "base"
    return str(save_tiny(folder, marked=True, max_position_embeddings=2048, tie_word_embeddings=False))


def save_adapter(folder, base, seed=1, **tokenizer):
    """A random adapter of ``base``; with ``tokenizer`` attributes, saved with a tokenizer that has them."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        config = LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False, task_type="CAUSAL_LM")
        get_peft_model(AutoModelForCausalLM.from_pretrained(base), config).save_pretrained(folder)
    if tokenizer:
        own = AutoTokenizer.from_pretrained(base)
        for name, value in tokenizer.items():
            setattr(own, name, value)
        own.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def adapters(base, tmp_path_factory):
    root = tmp_path_factory.mktemp("adapters")
    return save_adapter(root / "plain", base), save_adapter(root / "own", base, chat_template=OTHER_TEMPLATE)


def expected_loss(model, tokenizer):
    total, count = 0.0, 0
    for row in ROWS:
        encoded = tokenizer.apply_chat_template(row["messages"], return_dict=True, return_assistant_tokens_mask=True)
        ids, mask = torch.tensor([encoded["input_ids"]]), torch.tensor(encoded["assistant_masks"][1:]).bool()
        with torch.no_grad():
            losses = -model(ids).logits[0, :-1].log_softmax(-1).gather(1, ids[0, 1:, None])[mask]
        total, count = total + float(losses.sum()), count + len(losses)
    return total / count


def loss_of(folder, label, stem):
    return json.loads((folder / label / f"{stem}.json").read_text())["metrics"]


def stem_of(folder):
    return next(folder.glob("*/tokens-*.samples.jsonl")).name.removesuffix(".samples.jsonl")


def test_an_adapter_is_measured_with_its_own_template(base, adapters, data, tmp_path, capsys):
    measure([base, *adapters], tasks=[f"tokens:{data}"], output_dir=tmp_path)
    said = capsys.readouterr().err
    assert "models differ in chat template (base, plain | own)" in said
    bare, own = AutoTokenizer.from_pretrained(base), AutoTokenizer.from_pretrained(adapters[1])
    lm = AutoModelForCausalLM.from_pretrained(base)
    tuned = PeftModel.from_pretrained(lm, adapters[1]).eval()
    stem = stem_of(tmp_path)
    found = loss_of(tmp_path, "own", stem)
    assert found["loss"] == pytest.approx(expected_loss(tuned, own), rel=1e-4)
    assert found["loss"] != pytest.approx(expected_loss(tuned, bare), rel=1e-3)
    with tuned.disable_adapter():
        assert loss_of(tmp_path, "base", stem)["loss"] == pytest.approx(expected_loss(tuned, bare), rel=1e-4)
    plain = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), adapters[0]).eval()
    assert loss_of(tmp_path, "plain", stem)["loss"] == pytest.approx(expected_loss(plain, bare), rel=1e-4)
    assert found["kl"] > 0


def test_a_template_that_is_given_is_everyones(base, adapters, data, tmp_path, capsys):
    file = tmp_path / "t.jinja"
    file.write_text(MARKED_TEMPLATE.replace("helpful", "terse"))
    out = tmp_path / "out"
    measure([base, adapters[1]], tasks=[f"tokens:{data}"], output_dir=out, chat_template_path=str(file))
    assert "models differ" not in capsys.readouterr().err
    tokenizer = AutoTokenizer.from_pretrained(base)
    tokenizer.chat_template = file.read_text()
    tuned = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), adapters[1]).eval()
    assert loss_of(out, "own", stem_of(out))["loss"] == pytest.approx(expected_loss(tuned, tokenizer), rel=1e-4)


def test_an_answer_stops_at_the_runs_end_of_sequence_token(base, tmp_path):
    """The run ended its texts with a letter that the base goes on after."""
    other = save_adapter(tmp_path / "other", base, seed=3, eos_token="e", pad_token="z")
    models = load_models([base, other])
    e = models.tokenizers["other"].convert_tokens_to_ids("e")
    assert e in stop_tokens(models.models["other"], models.tokenizers["other"])
    assert e not in stop_tokens(models.models["base"], models.tokenizers["base"])
    assert models.tokenizers["other"].pad_token == "z"
    found = answer(models, [f"Question {n}" for n in range(6)], max_new_tokens=40)
    assert all("e" not in one.text for one in found["other"])
    assert any("e" in one.text for one in found["base"])


def template_with_tokens(root):
    """A model whose chat template has two tokens that the tiny tokenizer lacks."""
    tokenizer = tiny_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|turn|>", "<|end|>"]})
    tokenizer.eos_token = "<|end|>"
    tokenizer.chat_template = MARKED_TEMPLATE.replace("<|im_start|>", "<|turn|>").replace("<|im_end|>", "<|end|>")
    template = save_tiny(root / "template", vocab_size=261)
    tokenizer.save_pretrained(template)
    return template


def grown_run(root, base, *more):
    """A LoRA run whose chat template came from a model with two more tokens."""
    template = template_with_tokens(root)
    command = ["train", "--model_name_or_path", base, "--dataset_name", "word_problems", "--max_steps", "3"]
    command += ["--use_peft", "--max_train_samples", "8", "--chat_template_path", str(template), "--bf16", "false"]
    command += ["--learning_rate", "0.05", "--lora_target_modules", "all-linear", "--assistant_only_loss", "true"]
    command += ["--gradient_checkpointing", "false", "--report_to", "none", "--save_strategy", "no"]
    assert main([*command, "--output_dir", str(root / "grown"), *more]) == 0
    return str(root / "grown")


@pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers`:UserWarning")
def test_a_run_whose_vocabulary_grew_is_measured_and_asked_on_a_base_of_its_size(
    base, adapters, data, tmp_path, capsys
):
    run = grown_run(tmp_path, base)
    capsys.readouterr()
    out = tmp_path / "out"
    measure([base, run, adapters[0]], tasks=[f"tokens:{data}"], output_dir=out)
    assert "grown: no KL from the base" in capsys.readouterr().err
    tokenizer = AutoTokenizer.from_pretrained(run)
    lm = AutoModelForCausalLM.from_pretrained(base)
    lm.resize_token_embeddings(len(tokenizer.vocab), mean_resizing=False)
    tuned = PeftModel.from_pretrained(lm, run).eval()
    stem = stem_of(out)
    found = loss_of(out, "grown", stem)
    assert found["loss"] == pytest.approx(expected_loss(tuned, tokenizer), rel=1e-4)
    assert "kl" not in found
    bare = AutoTokenizer.from_pretrained(base)
    plain = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), adapters[0]).eval()
    assert loss_of(out, "plain", stem)["loss"] == pytest.approx(expected_loss(plain, bare), rel=1e-4)
    with plain.disable_adapter():
        assert loss_of(out, "base", stem)["loss"] == pytest.approx(expected_loss(plain, bare), rel=1e-4)
    scores = tmp_path / "scores"
    command = ["score", "--model", base, "--adapter", run, "--data", data, "--samples", "2"]
    assert main([*command, "--output_dir", str(scores)]) == 0
    assert pq.read_table(scores / "tokens.parquet")["loss"].to_numpy().mean() == pytest.approx(found["loss"], rel=1e-3)
    prompts = ["--prompts", "word_problems", "--limit", "3", "--max_new_tokens", "8"]
    assert main(["generate", run, *prompts, "--output_dir", str(tmp_path / "answers")]) == 0
    (said,) = answer([run], ["What is 2 + 2?"], max_new_tokens=8)["grown"]
    turns = [{"role": "user", "content": "What is 2 + 2?"}]
    ids = tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    ends = [tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids("<|im_end|>")]
    expected = tuned.generate(**ids, max_new_tokens=8, do_sample=False, eos_token_id=ends)
    cut = expected[0, ids["input_ids"].shape[1] :]
    assert said.text == tokenizer.decode(cut, skip_special_tokens=True).strip()


@pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers`:UserWarning")
@pytest.mark.parametrize(("kind", "rows"), [("llama", 259), ("llama", 512), ("phi3", 259)])
def test_a_run_whose_vocabulary_grew_merges_into_the_model_that_was_trained(kind, rows, data, tmp_path, monkeypatch):
    """The base has too few rows for the new tokens, or enough of them."""
    trained = []
    build = pipeline.build_trainer

    def building(*args, **kwargs):
        trained.append(build(*args, **kwargs))
        return trained[-1]

    monkeypatch.setattr(pipeline, "build_trainer", building)
    sizes = {"vocab_size": rows, "tie_word_embeddings": False, "max_position_embeddings": 2048}
    base = str(save_tiny(tmp_path / "base", kind, marked=True, **sizes))
    run, merged = grown_run(tmp_path, base), str(tmp_path / "merged")
    assert main(["merge", run, "--output_dir", merged, "--dtype", "float32"]) == 0
    assert trained[0].model.get_output_embeddings().weight.shape[0] == max(rows, 320)
    model, tokenizer = AutoModelForCausalLM.from_pretrained(merged), AutoTokenizer.from_pretrained(merged)
    ids = torch.tensor([[40, 259, 70, 9, 260, 120, 33, 259, 81]])
    with torch.no_grad():
        torch.testing.assert_close(model(ids).logits, trained[0].model.eval()(ids).logits, rtol=0, atol=1e-5)
    assert len(tokenizer.vocab) <= model.config.vocab_size == model.get_input_embeddings().weight.shape[0]
    assert tokenizer.eos_token == "<|end|>"
    assert measure([run], tasks=[f"tokens:{data}"], output_dir=tmp_path / "run_out")
    assert measure([merged], tasks=[f"tokens:{data}"], output_dir=tmp_path / "merged_out")
    losses = [
        loss_of(tmp_path / f"{name}_out", label, stem_of(tmp_path / f"{name}_out"))["loss"]
        for name, label in (("run", "grown"), ("merged", "merged"))
    ]
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)
    assert losses[1] == pytest.approx(expected_loss(model, tokenizer), rel=1e-4)
    asked = {"max_new_tokens": 8}
    assert (
        answer([run], ["What is 2 + 2?"], **asked)["grown"] == answer([merged], ["What is 2 + 2?"], **asked)["merged"]
    )
    words = ["--data", data, "--samples", "2"]
    for given in (["--model", base, "--adapter", run], ["--model", merged]):
        assert main(["score", *given, *words, "--output_dir", str(tmp_path / f"scores{len(given)}")]) == 0
    scores = [pq.read_table(tmp_path / f"scores{n}" / "tokens.parquet")["loss"].to_numpy() for n in (4, 2)]
    assert scores[0] == pytest.approx(scores[1], rel=1e-4)


@pytest.mark.parametrize(("kind", "why"), [("llama", "tied to its embedding"), ("gpt2", "tied"), ("gemma2", "tied")])
def test_new_tokens_that_lora_cannot_train_are_refused_before_a_run_is_begun(kind, why, tmp_path, capsys):
    base = str(save_tiny(tmp_path / "base", kind, marked=True))
    with pytest.raises(AssertionError):
        grown_run(tmp_path, base)
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert "chat_template_path: " in error
    assert "adds 61 tokens" in error  # TRL fills the embedding up to a multiple of 64
    assert why in error
    assert not (tmp_path / "grown").exists()


def test_a_tied_model_trained_whole_with_new_tokens_is_measured_with_them(data, tmp_path):
    base = str(save_tiny(tmp_path / "base", marked=True, max_position_embeddings=2048))
    run = grown_run(tmp_path, base, "--use_peft", "false", "--learning_rate", "0.001")
    measure([run], tasks=[f"tokens:{data}"], output_dir=tmp_path / "out")
    model, tokenizer = AutoModelForCausalLM.from_pretrained(run), AutoTokenizer.from_pretrained(run)
    found = loss_of(tmp_path / "out", "grown", stem_of(tmp_path / "out"))
    assert found["loss"] == pytest.approx(expected_loss(model, tokenizer), rel=1e-4)


@pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers`:UserWarning")
def test_an_adapter_trained_with_fewer_rows_than_the_base_has_is_used_with_them(tmp_path):
    """TRL cuts the embedding to the size of the tokenizer when it copies a chat template."""
    base = save_tiny(tmp_path / "base", vocab_size=512, tie_word_embeddings=False)
    cut = AutoModelForCausalLM.from_pretrained(base)
    cut.resize_token_embeddings(320, mean_resizing=False)
    config = LoraConfig(r=4, target_modules=["q_proj"], modules_to_save=["lm_head"], init_lora_weights=False)
    tuned = get_peft_model(cut, config).eval()
    tuned.save_pretrained(tmp_path / "adapter")
    ids = torch.tensor([[40, 70, 9, 120, 33, 81]])
    found = load_adapter(AutoModelForCausalLM.from_pretrained(base), tmp_path / "adapter").eval()
    with torch.no_grad():
        torch.testing.assert_close(found(ids).logits, tuned(ids).logits)
    models = load_models([str(base), str(tmp_path / "adapter")])
    assert models.resized == {"adapter"}
    other = load_adapter(AutoModelForCausalLM.from_pretrained(base), save_adapter(tmp_path / "other", str(base)))
    with pytest.raises(UserError, match="192 fewer tokens"):
        load_adapter(other, tmp_path / "adapter", name="second")


def test_switching_adapters_leaves_what_is_trainable_as_it_is(base, adapters):
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), adapters[0], adapter_name="a")
    model.load_adapter(adapters[1], adapter_name="b")
    for trainable in (False, True):
        model.requires_grad_(trainable)
        for name in (None, "b"):
            with contextlib.suppress(KeyError), active_adapter(model, name):
                assert {parameter.requires_grad for parameter in model.parameters()} == {trainable}
                raise KeyError
            assert model.active_adapter == "a"
            assert {parameter.requires_grad for parameter in model.parameters()} == {trainable}
    ids = torch.arange(10)[None]
    with torch.no_grad():
        before = model(ids).logits
        with active_adapter(model, None):
            bare = model(ids).logits
        assert torch.equal(model(ids).logits, before)
    assert torch.equal(bare, AutoModelForCausalLM.from_pretrained(base)(ids).logits)


def test_measured_models_do_not_stay_in_memory(base, adapters, data, tmp_path, monkeypatch):
    """On a GPU two models may not fit, and Python looks for cycles too rarely."""
    known = []

    def load(*args, **options):
        model = load_model(*args, **options)
        known.append(weakref.ref(model))
        return model

    monkeypatch.setattr("uncertune.evaluation.models.load_model", load)
    gc.disable()
    try:
        measure([base, adapters[0]], tasks=[f"tokens:{data}"], output_dir=tmp_path)
        assert [one() for one in known] == [None]
    finally:
        gc.enable()


DAMAGED = ("adapter_config.json", "adapter_model.safetensors", "tokenizer_config.json", "tokenizer.json")


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b"\xff\xfe\x00junk"])
@pytest.mark.parametrize("name", DAMAGED)
def test_a_damaged_file_is_named_in_one_line(name, content, base, adapters, data, tmp_path, capsys):
    run = tmp_path / "run"
    shutil.copytree(adapters[1], run)
    (run / name).write_bytes(content)
    words = ["--tasks", f"tokens:{data}", "--output_dir", str(tmp_path / "out")]
    assert main(["evaluate", base, str(run), *words]) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if "uncertune: error:" in line]
    assert len(lines) == 1
    assert str(run / name) in lines[0]
