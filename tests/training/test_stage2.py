"""Stage 2: the teacher is what it says it is, and the objective's limits are the objectives it is made of."""

import copy
import shutil

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, PeftModel
from transformers import AutoModelForCausalLM

from helpers.adapters import adapter, plain_logits
from helpers.harness import LORA, VOCABULARY, relative_difference, rows, run, settings
from helpers.tiny import save_tiny, tiny_model, tiny_tokenizer
from uncertune import UncertuneTrainer
from uncertune.errors import UserError
from uncertune.objectives import OBJECTIVES, weighted_nll
from uncertune.selection import exact_count, select
from uncertune.teachers.adapter import AdapterTeacher

PRECISIONS = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-11}


@pytest.fixture
def teacher(tmp_path):
    return adapter(tmp_path / "teacher")


def losses(step):
    return [entry["loss"] for entry in step.metrics]


def by_hand(student, teacher_model, data, fraction):
    """The loss of a step of S5 from plain logits: mean over all response tokens of the rows."""
    pairs = [(plain_logits(student, row), plain_logits(teacher_model, row)) for row in data]
    z = torch.cat([mine[0] for mine, _ in pairs])
    labels = torch.cat([mine[1] for mine, _ in pairs])
    p_ref = torch.cat([theirs[0] for _, theirs in pairs]).softmax(-1)
    scores = torch.nn.functional.cross_entropy(z, labels, reduction="none")
    targets = OBJECTIVES["masked_mle_distill"](labels, selected=select(scores, fraction), teacher=p_ref)
    return float(weighted_nll(z, targets).mean())


# ---- limits


@PRECISIONS
@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_everything_selected_is_mle(tmp_path, teacher, dtype, dropout):
    common = {"lora": {"lora_dropout": dropout}, "dtype": dtype, "max_steps": 3}
    cut = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2, "seed": 11}
    plain = run(tmp_path / "mle", data=rows(16), **common, **cut)
    both = run(
        tmp_path / "both",
        data=rows(16),
        objective="masked_mle_distill",
        selection_fraction=1.0,
        teacher=teacher,
        **common,
        **cut,
    )
    assert losses(both) == pytest.approx(losses(plain), rel=TOLERANCE[dtype])
    assert len(losses(plain)) == 3
    assert relative_difference(both.gradient, plain.gradient) < 10 * TOLERANCE[dtype]
    assert all(entry["loss_part_unselected"] == 0 and entry["selected_fraction"] == 1 for entry in both.metrics)


@PRECISIONS
def test_nothing_selected_is_distillation(tmp_path, teacher, dtype):
    cut = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2, "max_steps": 2, "dtype": dtype}
    pure = run(tmp_path / "distill", data=rows(16), objective="distill", teacher=teacher, **cut)
    nothing = {"objective": "masked_mle_distill", "selection_threshold": 1e9}
    both = run(tmp_path / "both", data=rows(16), teacher=teacher, **nothing, **cut)
    assert losses(both) == pytest.approx(losses(pure), rel=TOLERANCE[dtype])
    assert relative_difference(both.gradient, pure.gradient) < 10 * TOLERANCE[dtype]


def test_dense_advantages_of_the_teachers_probabilities_are_distillation(tmp_path, teacher):
    data = rows(8)
    reference = PeftModel.from_pretrained(tiny_model("llama", VOCABULARY), teacher).double().eval()
    advantages = []
    for row in data:
        with torch.no_grad():
            p = reference(input_ids=torch.tensor([row["input_ids"]])).logits[0].softmax(-1)
        advantages.append(p.roll(1, 0).tolist())  # row t holds what is asked of the token in column t
    given = Dataset.from_list([{**row, "advantages": a} for row, a in zip(data, advantages, strict=True)])
    cut = {"per_device_train_batch_size": 8}
    pure = run(tmp_path / "distill", data=data, objective="distill", teacher=teacher, **cut)
    dense = run(tmp_path / "gradient", data=given, objective="policy_gradient", **cut)
    assert dense.loss == pytest.approx(pure.loss, rel=1e-6)  # side columns are float32
    assert relative_difference(dense.gradient, pure.gradient) < 1e-6


# ---- the teacher


@pytest.mark.parametrize("kind", ["llama", "gemma2"])
def test_the_teacher_is_the_adapter(tmp_path, kind):
    """The first step's loss is that of two distributions made by hand, and not that of the base as teacher."""
    path, data = adapter(tmp_path / "teacher", kind=kind, lora_dropout=0.3), rows(8)
    step = run(
        tmp_path / "run",
        data=data,
        kind=kind,
        objective="masked_mle_distill",
        teacher=path,
        per_device_train_batch_size=4,
        gradient_accumulation_steps=2,
        learning_rate=0.0,
    )
    student = step.trainer.model
    base = tiny_model(kind, VOCABULARY, torch.float64)
    reference = PeftModel.from_pretrained(tiny_model(kind, VOCABULARY), path).double()
    assert step.loss == pytest.approx(by_hand(student, reference, data, 0.25), rel=1e-9)
    assert abs(step.loss - by_hand(student, base, data, 0.25)) > 0.01
    assert abs(step.loss - by_hand(student, student, data, 0.25)) > 0.01


def test_another_teacher_is_another_loss(tmp_path, teacher):
    other = adapter(tmp_path / "other", seed=4, rank=2)
    cut = {"data": rows(8), "objective": "masked_mle_distill", "per_device_train_batch_size": 8}
    first, second = (
        run(tmp_path / name, teacher=path, **cut) for name, path in (("first", teacher), ("second", other))
    )
    assert first.metrics[0]["loss_part_selected"] == pytest.approx(second.metrics[0]["loss_part_selected"], rel=1e-12)
    assert abs(first.metrics[0]["loss_part_unselected"] - second.metrics[0]["loss_part_unselected"]) > 0.01


@pytest.mark.parametrize("checkpointing", [False, True])
def test_the_teachers_adapter_stays_as_it_was(tmp_path, teacher, checkpointing):
    trainer = UncertuneTrainer(
        tiny_model("llama", VOCABULARY),
        settings(
            tmp_path / "run",
            objective="masked_mle_distill",
            max_steps=2,
            weight_decay=0.1,
            gradient_checkpointing=checkpointing,
        ),
        train_dataset=rows(16),
        processing_class=tiny_tokenizer(),
        peft_config=LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM", lora_dropout=0.1),
        teacher=teacher,
    )
    parameters = dict(trainer.model.named_parameters())
    before = {name: parameter.detach().clone() for name, parameter in parameters.items()}
    trainable = {name for name, parameter in parameters.items() if parameter.requires_grad}
    assert trainable
    assert all(".default." in name for name in trainable)
    trainer.train()
    assert {name for name, parameter in parameters.items() if parameter.requires_grad} == trainable
    assert trainer.model.active_adapter == "default"
    moved = {name for name, parameter in parameters.items() if not torch.equal(parameter, before[name])}
    assert moved == trainable
    assert all(parameter.grad is None for name, parameter in parameters.items() if name not in trainable)


@pytest.mark.parametrize("objective", ["distill", "masked_mle_distill"])
def test_gradient_checkpointing_recomputes_with_the_students_adapter(tmp_path, teacher, objective):
    cut = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2, "objective": objective}
    plain, saved = (
        run(tmp_path / str(on), data=rows(8), teacher=teacher, gradient_checkpointing=on, **cut) for on in (False, True)
    )
    assert saved.loss == pytest.approx(plain.loss, rel=1e-12)
    assert relative_difference(saved.gradient, plain.gradient) < 1e-12


def test_every_way_to_give_the_teacher_is_the_same(tmp_path, teacher):
    """An adapter folder; the same merged, as a model folder; and as a model."""
    merged = PeftModel.from_pretrained(tiny_model("llama", VOCABULARY), teacher).merge_and_unload()
    merged.save_pretrained(str(tmp_path / "merged"))
    tiny_tokenizer(tmp_path / "merged")
    cut = {"data": rows(8), "objective": "masked_mle_distill", "dtype": torch.float32, "per_device_train_batch_size": 8}
    forms = {"adapter": teacher, "folder": str(tmp_path / "merged"), "model": merged.eval()}
    steps = [run(tmp_path / name, teacher=form, **cut) for name, form in forms.items()]
    assert {type(step.trainer.references.teacher).__name__ for step in steps} == {"AdapterTeacher", "ModelTeacher"}
    for step in steps[1:]:
        assert step.loss == pytest.approx(steps[0].loss, rel=1e-5)
        assert relative_difference(step.gradient, steps[0].gradient) < 1e-4


def test_the_path_may_stand_in_the_configuration(tmp_path, teacher):
    cut = {"data": rows(8), "objective": "distill", "per_device_train_batch_size": 8}
    argument = run(tmp_path / "argument", **cut, teacher=teacher)
    trainer = UncertuneTrainer(
        tiny_model("llama", VOCABULARY, torch.float64),
        settings(tmp_path / "field", objective="distill", per_device_train_batch_size=8, teacher=teacher),
        train_dataset=rows(8),
        processing_class=tiny_tokenizer(),
        peft_config=LoraConfig(**LORA),
    )
    trainer.model.double()
    assert trainer.train().training_loss == pytest.approx(argument.loss, rel=1e-6)  # a float32 scalar


def test_an_adapter_of_the_hub_shares_the_base(tmp_path, teacher, monkeypatch):
    """Given by its id it is a second adapter too, and no second copy of the model; ``~`` is expanded."""
    commit = "0123456789" * 4
    there = tmp_path / "hub" / "models--somebody--teacher"
    (there / "refs").mkdir(parents=True)
    (there / "refs" / "main").write_text(commit)
    shutil.copytree(teacher, there / "snapshots" / commit)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("HOME", str(tmp_path))
    steps = [
        run(tmp_path / name, data=rows(8), objective="distill", teacher=source, per_device_train_batch_size=8)
        for name, source in (("folder", teacher), ("hub", "somebody/teacher"), ("home", "~/teacher"))
    ]
    for step in steps:
        assert isinstance(step.trainer.references.teacher, AdapterTeacher)
        assert step.loss == steps[0].loss
    with pytest.raises(UserError, match="nobody/nothing"):
        run(tmp_path / "none", data=rows(8), objective="distill", teacher="nobody/nothing")


def test_the_teacher_as_reference_of_rho_is_said_to_be_no_holdout(tmp_path, teacher, capsys):
    fields = {"objective": "masked_mle", "selection_metric": "rho", "rho_reference": "teacher"}
    run(tmp_path / "run", data=rows(8), teacher=teacher, per_device_train_batch_size=8, **fields)
    assert "it is not a holdout" in capsys.readouterr().err


def test_full_fine_tuning_with_a_tied_head(tmp_path):
    """The teacher keeps the head it came with while the student's, tied to its embeddings, moves."""
    save_tiny(tmp_path / "teacher", "llama", seed=7)
    data = rows(8)
    step = run(
        tmp_path / "run",
        data=data,
        lora=False,
        teacher=str(tmp_path / "teacher"),
        objective="masked_mle_distill",
        per_device_train_batch_size=8,
        max_steps=2,
    )
    reference = AutoModelForCausalLM.from_pretrained(tmp_path / "teacher").double()
    expected = by_hand(tiny_model("llama", VOCABULARY, torch.float64), reference, data, 0.25)
    assert step.metrics[0]["loss"] == pytest.approx(expected, rel=1e-9)
    inner = step.trainer.references.teacher.model
    assert not any(p.requires_grad or p.grad is not None for p in inner.parameters())
    assert all(torch.equal(p, q) for p, q in zip(inner.parameters(), reference.parameters(), strict=True))
    assert step.metrics[1]["loss"] < step.metrics[0]["loss"]
    assert any("embed_tokens" in name for name in step.gradient)


def test_the_model_that_is_trained_is_no_teacher(tmp_path):
    model = tiny_model("llama", VOCABULARY)
    with pytest.raises(UserError, match="teacher is the model that is trained"):
        run(tmp_path, data=rows(8), model=model, teacher=model, objective="distill")
    model = tiny_model("llama", VOCABULARY)
    step = run(tmp_path, data=rows(8), model=model, teacher=copy.deepcopy(model), objective="distill")
    assert step.loss > 0


def test_a_full_step_selects_exactly(tmp_path, teacher):
    step = run(
        tmp_path,
        data=rows(8),
        objective="masked_mle_distill",
        teacher=teacher,
        selection_fraction=0.07,
        per_device_train_batch_size=2,
        gradient_accumulation_steps=4,
    )
    tokens = sum(sum(label != -100 for label in row["labels"][1:]) for row in rows(8))
    assert step.metrics[0]["selected_fraction"] == pytest.approx(exact_count(0.07, tokens) / tokens, rel=1e-12)
