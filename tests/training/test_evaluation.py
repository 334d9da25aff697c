"""Evaluation measures means over all tokens, whatever the batch, each data set under its own prefix."""

from pathlib import Path

import pytest
import torch

from helpers.harness import VOCABULARY, rows, run, settings
from helpers.tiny import tiny_model, tiny_tokenizer
from helpers.two_processes import two_processes
from uncertune import UncertuneTrainer
from uncertune.errors import UserError
from uncertune.objectives import OBJECTIVES, weighted_nll
from uncertune.runs import read_metrics
from uncertune.selection import select
from uncertune.training.evaluation import Evaluation
from uncertune.training.step import Rule

MEASURED = ("eval_loss", "eval_entropy", "eval_mean_token_accuracy", "eval_objective")
BOTH = {"objective": "masked_mle_distill"}

# name → fields of the configuration
CASES = {
    "tokens": BOTH,
    "documents": {**BOTH, "selection_level": "document"},
    "the lowest": {"objective": "masked_mle", "selection_order": "lowest"},
    "random": {"objective": "masked_mle", "selection_metric": "random"},
    "by a threshold": {"objective": "masked_mle", "selection_threshold": 6.0},
    "distilled": {"objective": "distill"},
    "packed": {**BOTH, "packing": True, "eval_packing": True, "max_length": 30, "padding_free": True},
}


def trainer_of(folder, data, **fields):
    return UncertuneTrainer(
        tiny_model("llama", VOCABULARY, torch.float64),
        settings(folder, **fields),
        train_dataset=rows(8),
        eval_dataset=data,
        processing_class=tiny_tokenizer(),
        teacher=tiny_model("llama", VOCABULARY, torch.float64, seed=5) if "distill" in fields["objective"] else None,
    )


def measured(folder, case, size):
    metrics = trainer_of(folder, rows(7, seed=3), per_device_eval_batch_size=size, **CASES[case]).evaluate()
    return {name: metrics[name] for name in MEASURED}


def all_cases(folder):
    return [measured(Path(folder) / str(number), case, 2) for number, case in enumerate(CASES)]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    return {case: measured(folder / str(number), case, 8) for number, case in enumerate(CASES)}


def test_measures_are_sums_over_the_tokens():
    found = Evaluation(Rule("loss", 0.25, "token", 0))
    found.add(tokens=3, loss=6.5, entropy=1.5, correct=1)
    found.add(tokens=1, loss=1.5, entropy=0.5, correct=1)
    assert found.finish() == {"loss": 2.0, "entropy": 0.5, "mean_token_accuracy": 0.5}


@pytest.mark.parametrize("size", [1, 2])
@pytest.mark.parametrize("case", CASES)
def test_the_batch_changes_nothing(tmp_path, whole, case, size):
    assert measured(tmp_path, case, size) == pytest.approx(whole[case], rel=1e-9)


def test_ranks_change_nothing(tmp_path, whole):
    left, right = two_processes(all_cases, str(tmp_path), tmp_path / "results")  # 7 rows: one is repeated
    for case, one, other in zip(CASES, left, right, strict=True):
        assert one == other
        assert one == pytest.approx(whole[case], rel=1e-9), case


def test_the_mask_is_that_of_all_rows(whole):
    student, teacher = (tiny_model("llama", VOCABULARY, torch.float64, seed=seed) for seed in (0, 5))
    logits, labels, p_ref = [], [], []
    for row in rows(7, seed=3):
        keep, ids = torch.tensor(row["labels"])[1:] != -100, torch.tensor([row["input_ids"]])
        with torch.no_grad():
            logits.append(student(input_ids=ids).logits[0, :-1][keep])
            p_ref.append(teacher(input_ids=ids).logits[0, :-1][keep].softmax(-1))
        labels.append(torch.tensor(row["labels"])[1:][keep])
    z, y = torch.cat(logits), torch.cat(labels)
    losses = weighted_nll(z, OBJECTIVES["mle"](y))
    assert whole["tokens"]["eval_loss"] == pytest.approx(float(losses.mean()), rel=1e-9)
    targets = OBJECTIVES["masked_mle_distill"](y, selected=select(losses, 0.25), teacher=torch.cat(p_ref))
    assert whole["tokens"]["eval_objective"] == pytest.approx(float(weighted_nll(z, targets).mean()), rel=1e-9)


def test_each_data_set_has_its_own_prefix(tmp_path):
    sets = {"a": rows(7, seed=3), "b": rows(5, seed=4)}
    fields = {"per_device_eval_batch_size": 2, **BOTH}
    metrics = trainer_of(tmp_path / "both", sets, **fields).evaluate()
    for name, data in sets.items():
        alone = trainer_of(tmp_path / name, data, **fields).evaluate()
        for one in MEASURED:
            assert metrics[one.replace("eval_", f"eval_{name}_")] == pytest.approx(alone[one], rel=1e-9)
    assert not [one for one in MEASURED if one in metrics]
    lines = read_metrics(tmp_path / "both" / "metrics.jsonl", "eval")
    logged = {name: value for line in lines for name, value in line.items()}
    assert logged["eval_b_objective"] == metrics["eval_b_objective"]
    assert not [one for one in MEASURED if one in logged]


def test_an_objective_of_one_data_set_chooses_the_best_model(tmp_path):
    trainer = trainer_of(
        tmp_path,
        {"a": rows(3, seed=3), "b": rows(3, seed=4)},
        eval_strategy="steps",
        save_strategy="steps",
        eval_steps=1,
        save_steps=1,
        max_steps=2,
        load_best_model_at_end=True,
        metric_for_best_model="eval_b_objective",
        greater_is_better=False,
        **BOTH,
    )
    trainer.train()
    values = [
        line["eval_b_objective"] for line in read_metrics(tmp_path / "metrics.jsonl", "eval") if "eval_b_loss" in line
    ]
    assert trainer.state.best_metric == pytest.approx(min(values))


@pytest.mark.parametrize(
    ("data", "fields", "known"),
    [
        ({"a": rows(2)}, {"objective": "masked_mle"}, "eval_a_loss, eval_a_entropy"),
        (rows(2), {"objective": "masked_mle", "metric_for_best_model": "objectives"}, "eval_objective"),
        (rows(2), {"objective": "mle", "metric_for_best_model": "eval_objective"}, "eval_loss"),
    ],
)
def test_a_metric_that_is_not_measured_is_refused(tmp_path, data, fields, known):
    fields = {"eval_strategy": "steps", "save_strategy": "steps", "load_best_model_at_end": True, **fields}
    with pytest.raises(UserError, match=f"metric_for_best_model=.* is not measured: choose from .*{known}"):
        trainer_of(tmp_path, data, **fields)


def test_half_precision_gradients_are_rounded_after_the_loss_is_scaled(tmp_path, monkeypatch):
    from uncertune.training import step_loss

    factors = []
    sweep = step_loss.weighted_sweep

    def watched(*args, factor, **options):
        factors.append(factor)
        return sweep(*args, factor=factor, **options)

    monkeypatch.setattr(step_loss, "weighted_sweep", watched)
    fields = {"data": rows(8), "dtype": torch.float32, "per_device_train_batch_size": 8}
    run(tmp_path / "plain", **fields)

    def scale(trainer):
        trainer.accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)

    run(tmp_path / "scaled", prepare=scale, **fields)
    assert factors[1] == pytest.approx(1024 * factors[0])
