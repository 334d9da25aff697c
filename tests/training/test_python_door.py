"""``UncertuneTrainer`` from Python leaves what ``uncertune train`` leaves, and trains ``auto`` references first."""

import json

import pytest
import torch
import yaml
from datasets import Dataset
from peft import LoraConfig

from helpers.tiny import tiny_model, tiny_tokenizer
from uncertune import UncertuneConfig, UncertuneTrainer
from uncertune.errors import UserError
from uncertune.runs import read_metrics

ALPACA = [{"instruction": f"Say {n}.", "input": "", "output": f"{n}, {n * n}."} for n in range(20)]


def trainer_of(folder, *, lora=True, model=None, teacher=None, **fields):
    fields = {"max_steps": 2, "per_device_train_batch_size": 4, "logging_steps": 1, "save_strategy": "no", **fields}
    config = UncertuneConfig(str(folder), bf16=False, use_cpu=True, report_to="none", **fields)
    return UncertuneTrainer(
        tiny_model("llama", 259) if model is None else model,
        config,
        train_dataset=Dataset.from_list(ALPACA),
        processing_class=tiny_tokenizer(marked=True),
        peft_config=LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM") if lora else None,
        teacher=teacher,
    )


def test_a_trainer_leaves_the_folder_of_a_run(tmp_path):
    trainer_of(tmp_path, objective="masked_mle", learning_rate=0.003).train()
    names = ("config.yaml", "environment.json", "metrics.jsonl", "selection.parquet", "probe.jsonl")
    assert all((tmp_path / name).is_file() for name in (*names, "report.html", "tokens.html"))
    settings = yaml.safe_load((tmp_path / "config.yaml").read_text())
    assert (settings["objective"], settings["learning_rate"]) == ("masked_mle", 0.003)
    assert json.loads((tmp_path / "environment.json").read_text())["packages"]["torch"]
    assert "learning_rate" in (tmp_path / "report.html").read_text()
    assert len((tmp_path / "probe.jsonl").read_text().splitlines()) == 3


def test_save_report_false_leaves_records_alone(tmp_path):
    trainer_of(tmp_path, save_report=False).train()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["metrics.jsonl"]


@pytest.mark.parametrize("lora", [True, False])
def test_an_auto_teacher_is_trained_first(tmp_path, lora):
    """On the same tokens, from the same start; the model that was given is not trained by stage 1."""
    model = tiny_model("llama", 259)
    start = {name: value.clone() for name, value in model.state_dict().items()}
    auto = {"teacher": "auto"}
    trainer = trainer_of(tmp_path, lora=lora, model=model, objective="masked_mle_distill", **auto)
    first = read_metrics(tmp_path / "stage1", "step")
    assert [row["step"] for row in first] == [1, 2]
    stage_1 = yaml.safe_load((tmp_path / "stage1" / "config.yaml").read_text())
    assert (stage_1["objective"], stage_1["assistant_only_loss"]) == ("mle", True)
    assert trainer.args.assistant_only_loss is True
    now = trainer.model.get_base_model() if lora else trainer.model
    kept = {name.replace(".base_layer", ""): value for name, value in now.state_dict().items() if "lora_" not in name}
    assert all(torch.equal(kept[name], value) for name, value in start.items())
    trainer.train()
    assert len(read_metrics(tmp_path, "step")) == 2
    assert yaml.safe_load((tmp_path / "config.yaml").read_text())["teacher"] == str(tmp_path / "stage1")
    again = read_metrics(tmp_path / "stage1", "step")
    trainer_of(tmp_path, lora=lora, objective="masked_mle_distill", **auto)
    assert read_metrics(tmp_path / "stage1", "step") == again, "a finished stage 1 is used again"


def test_an_auto_reference_of_rho_holds_rows_out(tmp_path):
    trainer = trainer_of(tmp_path, objective="masked_mle", selection_metric="rho", rho_reference="auto")
    assert len(trainer.train_dataset) == 18
    assert (tmp_path / "rho_reference" / "adapter_model.safetensors").is_file()
    trainer.train()


def test_auto_beside_another_teacher_is_refused(tmp_path):
    with pytest.raises(UserError, match="'auto' stands alone"):
        trainer_of(tmp_path, objective="distill", teacher=["auto", str(tmp_path)])
