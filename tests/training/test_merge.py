"""Kinds of LoRA that users of TRL bring, the merged model, the model card, and quantised bases."""

from __future__ import annotations

import json
import re
import shutil
import warnings
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from huggingface_hub import ModelCard
from huggingface_hub.utils import filter_repo_objects
from peft import LoraConfig, PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from helpers.harness import VOCABULARY, relative_difference, rows, run, settings
from helpers.tiny import save_tiny, tiny_model, tiny_tokenizer
from uncertune.cli import main
from uncertune.errors import UserError
from uncertune.training import jobs
from uncertune.training.merge import merge
from uncertune.training.pipeline import Job
from uncertune.training.pipeline import run as run_job
from uncertune.training.publishing import model_card

KINDS = {
    "lora": {},
    "dora": {"use_dora": True},
    "rslora": {"use_rslora": True},
    "trained head": {"modules_to_save": ["lm_head"], "target_modules": ["q_proj", "v_proj"]},
}
# PEFT says so of every head that is trained apart from its embedding, which is what one of the cases is about
pytestmark = pytest.mark.filterwarnings(
    "ignore:Model has `tie_word_embeddings=True`:UserWarning",
    "ignore:Input and output embeddings are no longer tied:UserWarning",
)
IDS = torch.tensor([[40, 70, 9, 120, 33, 81]])


def job(folder, more, base, **fields):
    options = {"r": 4, "target_modules": "all-linear", "task_type": "CAUSAL_LM", **more}
    return Job(
        model=str(base),
        config=settings(folder, per_device_train_batch_size=4, max_steps=2, **fields),
        train_dataset=rows(),
        peft_config=LoraConfig(**options),
        processing_class=tiny_tokenizer(marked=True),
        resolved={"model_name_or_path": str(base), "objective": fields["objective"], "dataset_name": "someone/rows"},
    )


@pytest.fixture(scope="module", params=KINDS)
def trained(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("merge")
    base = save_tiny(folder / "base")
    more = KINDS[request.param]
    with warnings.catch_warnings():
        # peft: a head that was tied and is trained apart is hard to merge; here it is merged
        warnings.filterwarnings("ignore", message="Model has `tie_word_embeddings=True`")
        return base, run_job(job(folder / "run", more, base, objective="masked_mle_distill", teacher="auto"))


def test_two_stages_train_and_the_merged_model_has_their_logits(trained, tmp_path, capsys):
    base, folder = trained
    assert (folder / "stage1" / "adapter_config.json").is_file()
    assert main(["merge", str(folder), "--output_dir", str(tmp_path / "merged"), "--dtype", "float32"]) == 0
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    assert not hasattr(merged, "peft_config")
    assert not (tmp_path / "merged" / "adapter_config.json").exists()
    plain = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    with torch.no_grad():
        before = plain(IDS).logits
        wanted = PeftModel.from_pretrained(plain, str(folder)).eval()(IDS).logits
        found = merged.eval()(IDS).logits
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)
    assert (wanted - before).abs().max() > 1e-4
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "merged")
    assert tokenizer.chat_template == AutoTokenizer.from_pretrained(folder).chat_template
    assert ModelCard.load(tmp_path / "merged" / "README.md").data.library_name == "transformers"
    assert main(["merge", str(folder), "--output_dir", str(tmp_path / "merged")]) == 2
    assert "is not empty" in capsys.readouterr().err


def test_what_cannot_be_merged_is_one_line(tmp_path, capsys):
    base = save_tiny(tmp_path / "base")
    for arguments, said in (
        ([str(base), "--output_dir", str(tmp_path / "a")], "holds a full model"),
        ([str(tmp_path), "--output_dir", str(tmp_path / "a")], "holds no adapter"),
        ([str(base)], "output_dir is missing"),
        ([str(base), "--output_dir", str(tmp_path / "a"), "--dtype", "int4"], "dtype must be one of"),
    ):
        assert main(["merge", *arguments]) == 2
        assert said in capsys.readouterr().err
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize("name", ["dora", "rslora"])
def test_other_scalings_of_lora_do_not_depend_on_the_cut(tmp_path, name):
    def cut(size, accumulation):
        return run(
            tmp_path / f"{size}",
            data=rows(),
            lora=KINDS[name],
            objective="masked_mle_distill",
            teacher=tiny_model("llama", VOCABULARY, torch.float64, seed=5),
            per_device_train_batch_size=size,
            gradient_accumulation_steps=accumulation,
        )

    whole, pieces = cut(8, 1), cut(2, 4)
    assert pieces.masks == whole.masks
    assert relative_difference(pieces.gradient, whole.gradient) < 1e-9


def test_merge_never_takes_trust_from_the_run(trained, tmp_path, capsys):
    """The base model brings code that would write a file."""
    base, folder = trained
    strange = shutil.copytree(base, tmp_path / "strange")
    config = json.loads((strange / "config.json").read_text())
    config |= {"model_type": "strange", "auto_map": {"AutoConfig": "code.Config", "AutoModelForCausalLM": "code.Model"}}
    (strange / "config.json").write_text(json.dumps(config))
    (strange / "code.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w').close()\n")
    run = shutil.copytree(folder, tmp_path / "run")
    settings = {"model_name_or_path": str(strange), "trust_remote_code": True}
    (run / "config.yaml").write_text(json.dumps(settings))
    assert main(["merge", str(run), "--output_dir", str(tmp_path / "merged")]) == 2
    assert "strange" in capsys.readouterr().err.strip().splitlines()[-1]
    assert not (tmp_path / "ran").exists()
    assert not (tmp_path / "merged").exists()


def test_the_merged_model_stops_where_the_run_did(tmp_path):
    """Configuration, generation configuration and tokenizer name the same end and padding."""
    base = save_tiny(tmp_path / "base")
    for name in ("config.json", "generation_config.json"):
        fields = json.loads((base / name).read_text())
        (base / name).write_text(json.dumps({**fields, "eos_token_id": 5, "pad_token_id": 6}))
    folder = run_job(job(tmp_path / "run", {}, base, objective="mle"))
    merge(folder, tmp_path / "merged")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "merged")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    ends = model.generation_config.eos_token_id
    ends = ends if isinstance(ends, list) else [ends]
    assert tokenizer.eos_token_id == model.config.eos_token_id == ends[0]
    assert tokenizer.pad_token_id == model.config.pad_token_id == model.generation_config.pad_token_id
    with torch.no_grad():  # the end of text is now by far the likeliest token
        head = torch.nn.Linear(model.config.hidden_size, model.config.vocab_size)
        head.weight.zero_()
        head.bias.zero_()[tokenizer.eos_token_id] = 10
    model.lm_head = head
    out = model.generate(IDS, attention_mask=torch.ones_like(IDS), max_new_tokens=9, do_sample=False)
    assert out[0, IDS.shape[1] :].tolist() == [tokenizer.eos_token_id]


DAMAGES = ["config.yaml", "metrics.jsonl", "adapter_config.json", "adapter_model.safetensors", "tokenizer.json"]


@pytest.mark.parametrize("name", DAMAGES)
@pytest.mark.parametrize("content", [b"\xff\x00\x01", b"[1]", b"{"])
def test_merge_names_a_damaged_file_of_the_run(trained, tmp_path, capsys, name, content):
    run = shutil.copytree(trained[1], tmp_path / "run")
    (run / name).write_bytes(content)
    assert main(["merge", str(run), "--output_dir", str(tmp_path / "merged")]) == 2
    error = capsys.readouterr().err
    assert f"{name}' " in error.strip().splitlines()[-1]
    assert "Traceback" not in error
    assert not (tmp_path / "merged").exists()


# -------------------------------------------------------------------------------------------------------------- card


def test_the_card_of_a_run_says_what_was_asked_and_what_came_out(trained):
    _, folder = trained
    card = ModelCard.load(folder / "README.md")
    assert card.data.library_name == "peft"
    assert card.data.datasets == ["someone/rows"]
    assert {"uncertune", "trl", "sft", "masked_mle_distill"} <= set(card.data.tags)
    for line in (
        "| objective | `masked_mle_distill` |",
        "| selection_metric | loss |",
        "| selection_fraction | 0.25 |",
        "| selection_level | token |",
        "| teacher | auto: the same start, fine-tuned with MLE |",
        "| step | 2 |",
        "| training loss, mean of the last 2 steps |",
        "| selected fraction, mean of the last 2 steps | 0.2",
    ):
        assert line in card.text, line
    assert str(folder.parent) not in str(card)
    assert "`mle`" in ModelCard.load(folder / "stage1" / "README.md").text


def test_a_card_keeps_hub_names_and_hides_paths():
    text = model_card(
        {"model_name_or_path": "meta-llama/Llama-3.2-1B", "dataset_name": "/data/mine/rows.jsonl"}, [], adapter=False
    )
    data = ModelCard(text).data
    assert (data.base_model, data.datasets) == ("meta-llama/Llama-3.2-1B", None)
    assert "/data" not in text
    assert "rows.jsonl" in text
    assert "Results" not in text


def test_a_card_quotes_means_and_evaluations_instead_of_the_last_step():
    rows = [{"kind": "step", "step": step, "loss": 1.0 + step % 2, "num_tokens": 10 * step} for step in range(1, 21)]
    rows += [{"kind": "eval", "step": step, "eval_loss": loss} for step, loss in ((5, 1.5), (10, 1.25), (20, 1.375))]
    text = model_card({}, rows, adapter=True)
    for line in (
        "| step | 20 |",
        "| training loss, mean of the last 10 steps | 1.5 |",
        "| tokens seen | 200 |",
        "| best eval loss, at step 10 | 1.25 |",
        "| last eval loss | 1.375 |",
    ):
        assert line in text, line
    assert "pypi.org" not in text


@pytest.mark.parametrize(
    ("saving", "checkpoints"),
    [
        ({"hub_strategy": "end"}, []),
        ({"hub_strategy": "checkpoint", "save_strategy": "steps", "save_steps": 1}, ["last-checkpoint"] * 2),
    ],
    ids=["at the end", "checkpoints"],
)
def test_push_to_hub_uploads_the_model_and_its_card_alone(tmp_path, monkeypatch, saving, checkpoints):
    sent = []

    class Api:
        def create_repo(self, name, **_):
            return SimpleNamespace(repo_id=name)

        def upload_folder(
            self, *, repo_id, folder_path, path_in_repo=None, allow_patterns=None, ignore_patterns=None, **_
        ):
            """What the hub's client would send."""
            files = [
                path.relative_to(folder_path).as_posix() for path in Path(folder_path).rglob("*") if path.is_file()
            ]
            files = filter_repo_objects(files, allow_patterns=allow_patterns, ignore_patterns=ignore_patterns)
            files = {name: (Path(folder_path) / name).read_bytes() for name in files}
            sent.append((repo_id, path_in_repo, files))
            return SimpleNamespace(is_done=lambda: True, done=lambda: True)

    monkeypatch.setattr("transformers.trainer.hf_api", Api)
    options = {"objective": "masked_mle_distill", "teacher": "auto", "teacher_cache": "hidden", "save_report": True}
    options |= saving
    base = save_tiny(tmp_path / "base")
    (tmp_path / "run" / "additional_chat_templates").mkdir(parents=True)
    (tmp_path / "run" / "additional_chat_templates" / "tool_use.jinja").write_text("{{ messages }}")
    run_job(job(tmp_path / "run", {}, base, push_to_hub=True, hub_model_id="someone/mine", **options))
    here = {path.name for path in (tmp_path / "run").iterdir()}
    assert {"probe.jsonl", "selection.parquet", "stage1", "teacher_cache", "config.yaml", "metrics.jsonl"} <= here
    whole = [files for _, place, files in sent if place is None]
    assert [place for _, place, _ in sent if place is not None] == checkpoints
    for files in whole:
        assert set(files) == {
            *("README.md", "adapter_config.json", "adapter_model.safetensors"),
            *("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"),
            "additional_chat_templates/tool_use.jinja",
        }
    assert {repo for repo, _, _ in sent} == {"someone/mine"}
    card = whole[-1]["README.md"].decode()
    assert "| objective | `masked_mle_distill` |" in card
    assert "# mine" in card
    assert "| training loss, " in card


# ---------------------------------------------------------------------------------------------------------- quantised


def quantised(**fields):
    return SimpleNamespace(**{"load_in_4bit": False, "load_in_8bit": False, "use_peft": True, **fields})


def test_a_quantised_base_is_refused_where_it_cannot_be_trained(monkeypatch):
    with pytest.raises(UserError, match="set use_peft"):
        jobs._check_quantized(quantised(load_in_8bit=True, use_peft=False))
    monkeypatch.setattr(jobs.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'uncertune\[qlora\]'"):
        jobs._check_quantized(quantised(load_in_4bit=True))
    jobs._check_quantized(quantised())


def test_four_bits_on_a_cpu_are_refused(monkeypatch):
    monkeypatch.setattr(jobs.importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    with pytest.raises(UserError, match="load_in_8bit"):
        jobs._check_quantized(quantised(load_in_4bit=True))
    jobs._check_quantized(quantised(load_in_8bit=True))


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")  # of bitsandbytes
@pytest.mark.parametrize("bits", [pytest.param(4, marks=pytest.mark.gpu), 8])
def test_a_quantised_base_trains_in_two_stages(tmp_path, bits):
    if bits == 4 and not torch.cuda.is_available():
        pytest.skip("needs CUDA: bitsandbytes cannot train on 4-bit weights on a CPU")
    pytest.importorskip("bitsandbytes")
    base = save_tiny(tmp_path / "base", "qwen2", hidden_size=128, intermediate_size=128)  # blocks of 64
    config = tmp_path / "run.yaml"
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps({"prompt": "ab" * n, "completion": "cdef" * n}) + "\n" for n in range(2, 10)))
    fields = {
        f"load_in_{bits}bit": True,
        "use_peft": True,
        "lora_target_modules": "all-linear",
        "lora_r": 4,
        "dtype": "float32",
        "model_name_or_path": str(base),
        "dataset_name": str(data),
        "output_dir": str(tmp_path / "run"),
        "objective": "masked_mle_distill",
        "teacher": "auto",
        "bf16": False,
        "use_cpu": True,
        "max_steps": 2,
        "per_device_train_batch_size": 4,
        "report_to": "none",
        "learning_rate": 0.01,
    }
    config.write_text(json.dumps(fields))
    assert main(["train", "--config", str(config)]) == 0
    assert json.loads((tmp_path / "run" / "run.json").read_text())["complete"]
    assert (tmp_path / "run" / "stage1" / "adapter_model.safetensors").is_file()
    assert main(["merge", str(tmp_path / "run"), "--output_dir", str(tmp_path / "merged")]) == 0
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    assert {p.dtype for p in merged.parameters()} == {torch.float32}
    assert getattr(merged.config, "quantization_config", None) is None


def test_names_of_folders_are_text_in_the_card():
    odd = "runs/<img src=x onerror=alert(1)>`|\u202e\x1b[2J\nevil"
    settings = {"model_name_or_path": f"./{odd}", "dataset_name": odd, "output_dir": odd, "objective": "mle"}
    text = model_card(settings, [], adapter=True)
    body = text.split("---\n")[-1]
    assert not {"\u202e", "\x1b"} & set(text)
    (heading,) = [line for line in body.splitlines() if line.startswith("# ")]
    assert "<img" not in heading
    outside = re.sub(r"`[^`]*`", "", body.replace(heading, ""))
    assert "<img" not in outside
