"""What a run writes down is what happened (SPEC B8): metrics, masks, evaluation, what was cut, probes."""

import json

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from datasets import Dataset
from peft import LoraConfig

from helpers.harness import VOCABULARY, rows, run, settings
from helpers.tiny import tiny_model, tiny_tokenizer
from uncertune import UncertuneTrainer
from uncertune.objectives import OBJECTIVES, weighted_nll
from uncertune.runs import read_metrics
from uncertune.runs.records import selection_schema
from uncertune.selection import exact_count, select
from uncertune.training.batch import document_hash
from uncertune.training.probe import Probe


def response(labels):
    return [label != -100 for label in labels[1:]]


def count(data):
    return sum(sum(response(row["labels"])) for row in data)


def name_of(row):
    return document_hash(torch.tensor(row["input_ids"]), torch.tensor(row["labels"]))


def unpacked(folder):
    """step → document → its mask, from selection.parquet."""
    table = pq.read_table(folder / "selection.parquet")
    assert table.schema == selection_schema()
    out = {}
    for row in table.to_pylist():
        bits = np.unpackbits(np.frombuffer(row["selected"], np.uint8))[: row["tokens"]].astype(bool)
        assert row["document"] not in out.setdefault(row["step"], {})
        out[row["step"]][row["document"]] = bits.tolist()
    return out


def plain_losses(model, data):
    """Document hash → cross-entropy of its response tokens from the model's own logits."""
    out = {}
    for row in data:
        ids, labels = torch.tensor([row["input_ids"]]), torch.tensor(row["labels"])[1:]
        with torch.no_grad():
            z = model(input_ids=ids, use_cache=False).logits[0, :-1]
        keep = labels != -100
        out[name_of(row)] = torch.nn.functional.cross_entropy(z[keep], labels[keep], reduction="none")
    return out


# ---- metrics.jsonl


@pytest.mark.parametrize("accumulation", [1, 4])
@pytest.mark.parametrize("fraction", [0.07, 0.25, 1.0])
def test_each_step_adds_up(tmp_path, fraction, accumulation):
    teacher = tiny_model("llama", VOCABULARY, torch.float64, seed=5)
    step = run(
        tmp_path,
        data=rows(8),
        objective="masked_mle_distill",
        selection_fraction=fraction,
        teacher=teacher,
        max_steps=3,
        per_device_train_batch_size=8 // accumulation,
        gradient_accumulation_steps=accumulation,
    )
    tokens = count(rows(8))
    assert [entry["step"] for entry in step.metrics] == [1, 2, 3]
    for entry in step.metrics:
        assert entry["loss"] == pytest.approx(entry["loss_part_selected"] + entry["loss_part_unselected"], rel=1e-12)
        assert entry["selected_fraction"] * tokens == pytest.approx(exact_count(fraction, tokens), rel=1e-12)
        assert ("nll_unselected" in entry) == (fraction < 1)
        assert entry["nll_selected"] >= entry.get("nll_unselected", 0)
        assert 0 <= entry["mean_token_accuracy"] <= 1
        assert 0 < entry["entropy"] < np.log(VOCABULARY)
    assert step.metrics[-1]["num_tokens"] == 3 * sum(len(row["input_ids"]) for row in rows(8))
    logged = [entry["loss"] for entry in read_metrics(tmp_path / "metrics.jsonl", "log") if "loss" in entry]
    assert logged == pytest.approx([entry["loss"] for entry in step.metrics], rel=1e-6)


@pytest.mark.parametrize("level", ["token", "document"])
def test_the_threshold_is_the_lowest_selected_score(tmp_path, level):
    model, data = tiny_model("llama", VOCABULARY, torch.float64), rows(8)
    losses = plain_losses(model, data)
    step = run(
        tmp_path,
        data=data,
        model=model,
        lora=False,
        objective="masked_mle",
        selection_level=level,
        normalize_by="selected",
        per_device_train_batch_size=4,
        gradient_accumulation_steps=2,
    )
    masks = unpacked(tmp_path)[1]
    assert masks.keys() == losses.keys()
    chosen = {name: losses[name][torch.tensor(mask)] for name, mask in masks.items()}
    scores = {name: losses[name].mean() for name in losses if any(masks[name])}
    if level == "document":
        assert all(all(masks[name]) for name in scores)
        assert len(scores) == 2  # a quarter of eight
        lowest = min(float(score) for score in scores.values())
    else:
        lowest = min(float(loss.min()) for loss in chosen.values() if len(loss))
        rejected = [losses[name][~torch.tensor(mask)] for name, mask in masks.items()]
        assert max(float(loss.max()) for loss in rejected if len(loss)) < lowest
    assert step.metrics[0]["selection_threshold"] == pytest.approx(lowest, rel=1e-9)
    expected = float(torch.cat(list(chosen.values())).mean())  # by the selected tokens
    assert step.loss == pytest.approx(expected, rel=1e-9)
    assert step.metrics[0]["loss_part_unselected"] == 0
    assert step.metrics[0]["nll_selected"] == pytest.approx(expected, rel=1e-6)
    others = [losses[name][~torch.tensor(mask)] for name, mask in masks.items()]
    assert step.metrics[0]["nll_unselected"] == pytest.approx(float(torch.cat(others).mean()), rel=1e-6)


# ---- selection.parquet


@pytest.mark.parametrize("packing", [False, True])
def test_masks_are_found_again_after_shuffling_and_packing(tmp_path, packing):
    model = tiny_model("llama", VOCABULARY, torch.float64)
    data = Dataset.from_list(  # every other row without a prompt: its first label counts padded, and not packed
        [{**row, "labels": row["input_ids"]} if number % 2 else row for number, row in enumerate(rows(8))]
    )
    losses = plain_losses(model, data)
    fields = {"packing": True, "max_length": 30} if packing else {}
    run(
        tmp_path,
        data=data,
        model=model,
        lora=False,
        objective="masked_mle",
        shuffle_dataset=True,
        per_device_train_batch_size=8,
        **fields,
    )
    masks = unpacked(tmp_path)[1]
    assert set(masks) == {name_of(row) for row in data}
    order = list(losses)
    expected = select(torch.cat([losses[name] for name in order]), 0.25)
    for name, mask in zip(order, expected.split([len(losses[name]) for name in order]), strict=True):
        assert masks[name] == mask.tolist()
    assert sum(sum(mask) for mask in masks.values()) == exact_count(0.25, count(data))
    assert not (tmp_path / "selection").exists()


def test_masks_of_all_steps(tmp_path):
    run(tmp_path, data=rows(8), objective="masked_mle", per_device_train_batch_size=2, max_steps=6)
    masks = unpacked(tmp_path)
    assert sorted(masks) == [1, 2, 3, 4, 5, 6]
    assert set().union(*(masks[step] for step in (1, 2, 3, 4))) == {name_of(row) for row in rows(8)}


def test_selection_can_be_switched_off(tmp_path):
    step = run(tmp_path / "off", data=rows(8), objective="masked_mle", save_selection=False)
    assert not (tmp_path / "off" / "selection.parquet").exists()
    assert "selected_fraction" in step.metrics[0]
    step = run(tmp_path / "mle", data=rows(8))
    assert not (tmp_path / "mle" / "selection.parquet").exists()
    assert "selected_fraction" not in step.metrics[0]


@pytest.mark.parametrize("fields", [{}, {"selection_level": "document"}, {"normalize_by": "selected"}])
def test_a_step_may_select_nothing(tmp_path, capsys, fields):
    step = run(
        tmp_path,
        data=rows(8),
        objective="masked_mle",
        selection_threshold=1e3,
        per_device_train_batch_size=4,
        gradient_accumulation_steps=2,
        max_steps=2,
        **fields,
    )
    assert [row["loss"] for row in step.metrics] == [0, 0]
    assert [row["selected_fraction"] for row in step.metrics] == [0, 0]
    assert [row["selection_threshold"] for row in step.metrics] == [1e3, 1e3]
    assert all(bool((gradient == 0).all()) for gradient in step.gradient.values())
    assert "selection_threshold=1000.0: 2 of 2 steps selected nothing" in capsys.readouterr().err


# ---- evaluation


@pytest.mark.parametrize("objective", ["mle", "masked_mle", "distill", "masked_mle_distill", "policy_gradient"])
def test_eval_loss_is_cross_entropy_and_eval_objective_the_objective(tmp_path, objective):
    data = rows(8, side="advantages" if objective == "policy_gradient" else None)
    student = tiny_model("llama", VOCABULARY, torch.float64)
    teacher = tiny_model("llama", VOCABULARY, torch.float64, seed=5) if "distill" in objective else None
    trainer = UncertuneTrainer(
        student,
        settings(tmp_path / "run", objective=objective, per_device_eval_batch_size=8),
        train_dataset=data,
        eval_dataset=data,
        processing_class=tiny_tokenizer(),
        teacher=teacher,
    )
    metrics = trainer.evaluate()
    assert read_metrics(tmp_path / "run" / "metrics.jsonl", "eval")[-1]["eval_loss"] == metrics["eval_loss"]
    losses = torch.cat(list(plain_losses(student, data).values()))
    assert metrics["eval_loss"] == pytest.approx(float(losses.mean()), rel=1e-9)
    assert ("eval_objective" in metrics) == (objective != "mle")
    if objective == "mle":
        return
    given = {}
    uses = OBJECTIVES[objective].needs
    z, labels, p_ref, advantages = [], [], [], []
    for row in data:
        keep = torch.tensor(response(row["labels"]))
        ids = torch.tensor([row["input_ids"]])
        with torch.no_grad():
            z.append(student(input_ids=ids).logits[0, :-1][keep])
            p_ref.append((teacher or student)(input_ids=ids).logits[0, :-1][keep].softmax(-1))
        labels.append(torch.tensor(row["labels"])[1:][keep])
        if "advantages" in uses:
            advantages.append(torch.tensor(row["advantages"])[1:][keep])
    if "selected" in uses:
        given["selected"] = select(losses, 0.25)
    if "teacher" in uses:
        given["teacher"] = torch.cat(p_ref)
    if "advantages" in uses:
        given["advantages"] = torch.cat(advantages)
    expected = weighted_nll(torch.cat(z), OBJECTIVES[objective](torch.cat(labels), **given)).mean()
    assert metrics["eval_objective"] == pytest.approx(float(expected), rel=1e-6)
    assert abs(metrics["eval_objective"] - metrics["eval_loss"]) > 1e-3


def test_weights_of_tokens_have_an_objective_of_their_own(tmp_path):
    data = rows(8, side="token_weight")
    trainer = UncertuneTrainer(
        tiny_model("llama", VOCABULARY, torch.float64),
        settings(tmp_path / "run", per_device_eval_batch_size=8),
        train_dataset=data,
        eval_dataset=data,
        processing_class=tiny_tokenizer(),
    )
    metrics = trainer.evaluate()
    losses = plain_losses(trainer.model, data)
    weights = [torch.tensor(row["token_weight"])[1:][torch.tensor(response(row["labels"]))] for row in data]
    weighted = torch.cat([loss * weight for loss, weight in zip(losses.values(), weights, strict=True)])
    assert metrics["eval_objective"] == pytest.approx(float(weighted.mean()), rel=1e-5)


def test_evaluation_leaves_training_as_it_was(tmp_path):
    plain = run(tmp_path / "plain", data=rows(8), objective="masked_mle", max_steps=3)
    trainer = UncertuneTrainer(
        tiny_model("llama", VOCABULARY, torch.float64),
        settings(tmp_path / "run", objective="masked_mle", max_steps=3, eval_strategy="steps", eval_steps=1),
        train_dataset=rows(8),
        eval_dataset=rows(4, seed=1),
        processing_class=tiny_tokenizer(),
        peft_config=LoraConfig(
            r=4, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM", init_lora_weights=False
        ),
    )
    trainer.model.double()
    trainer.train()
    log = read_metrics(tmp_path / "run" / "metrics.jsonl", "step")
    assert [entry["loss"] for entry in log] == pytest.approx([entry["loss"] for entry in plain.metrics], rel=1e-12)
    assert len(read_metrics(tmp_path / "run" / "metrics.jsonl", "eval")) == 3


# ---- side columns


def numbered(lengths):
    """Rows whose side columns name the token they belong to: 100 · row + column."""
    data = []
    for number, length in enumerate(lengths):
        ids = [3 + (7 * number + place) % 200 for place in range(length)]
        place = [100.0 * number + column for column in range(length)]
        labels = [-100 if column < 2 else token for column, token in enumerate(ids)]
        nested = {"oracle": [[p / 1000, 1 - p / 1000] for p in place]}
        nested |= {"oracle_ids": [[number, 100 + column] for column in range(length)]}
        data.append({"input_ids": ids, "labels": labels, "token_weight": place, **nested})
    return Dataset.from_list(data)


@pytest.mark.parametrize(
    ("packing", "mode"),
    [("no", "keep_start"), ("no", "keep_end"), ("bfd", "keep_start"), ("bfd_split", "keep_start")],
)
@pytest.mark.filterwarnings("ignore:The `'keep_end'` truncation mode is deprecated:FutureWarning")
def test_side_columns_stay_beside_their_tokens(tmp_path, packing, mode):
    fields = {} if packing == "no" else {"packing": True, "packing_strategy": packing}
    trainer = UncertuneTrainer(
        tiny_model("llama", VOCABULARY),
        settings(tmp_path, objective="oracle", max_length=10, truncation_mode=mode, shuffle_dataset=True, **fields),
        train_dataset=numbered([9, 14, 4, 7, 10]),
        processing_class=tiny_tokenizer(),
    )
    seen = set()
    for batch in trainer.get_train_dataloader():
        ids, weight = batch["input_ids"], batch["token_weight"]
        assert weight.shape == ids.shape == batch["labels"].shape
        assert batch["oracle"].shape == batch["oracle_ids"].shape == (*ids.shape, 2)
        assert (weight.dtype, batch["oracle_ids"].dtype) == (torch.float32, torch.int64)
        real = batch["attention_mask"].bool() if "attention_mask" in batch else torch.ones_like(ids, dtype=torch.bool)
        row, column = (weight[real] // 100).long(), (weight[real] % 100).long()
        assert torch.equal(ids[real], 3 + (7 * row + column) % 200)
        share = weight[real] / 1000
        torch.testing.assert_close(batch["oracle"][real], torch.stack([share, 1 - share], -1))
        assert torch.equal(batch["oracle_ids"][real], torch.stack([row, 100 + column], -1))
        assert not weight[~real].any()
        seen |= set(zip(row.tolist(), column.tolist(), strict=True))
    limit = 14 if packing == "bfd_split" else 10
    kept = {number: range(length)[:limit] for number, length in enumerate([9, 14, 4, 7, 10])}
    if mode == "keep_end":
        kept[1] = range(4, 14)
    assert seen == {(number, column) for number, columns in kept.items() for column in columns}


def test_a_weight_for_the_whole_row_and_evaluation_data_without(tmp_path):
    """Training data may have a column that evaluation data lack."""
    data = Dataset.from_list([{**row, "token_weight": 1 + number % 3} for number, row in enumerate(rows(8))])
    weighted = UncertuneTrainer(
        tiny_model("llama", VOCABULARY, torch.float64),
        settings(tmp_path, per_device_train_batch_size=8),
        train_dataset=data,
        eval_dataset=rows(4),
        processing_class=tiny_tokenizer(),
    )
    losses = plain_losses(tiny_model("llama", VOCABULARY, torch.float64), data)
    expected = sum(float(losses[name_of(row)].sum()) * row["token_weight"] for row in data) / count(data)
    weighted.train()
    assert read_metrics(tmp_path / "metrics.jsonl", "step")[0]["loss"] == pytest.approx(expected, rel=1e-9)
    before = float(torch.cat(list(plain_losses(weighted.model, rows(4)).values())).mean())
    assert weighted.evaluate()["eval_loss"] == pytest.approx(before, rel=1e-9)


# ---- what is cut


def test_what_truncation_cuts_and_drops_is_printed(tmp_path, capsys):
    def printed(data, **fields):
        UncertuneTrainer(
            tiny_model("llama", VOCABULARY),
            settings(tmp_path, **fields),
            train_dataset=data,
            processing_class=tiny_tokenizer(),
        )
        return [line for line in capsys.readouterr().err.splitlines() if line.startswith("train data:")]

    long = {"input_ids": list(range(3, 15)), "labels": [-100] * 4 + list(range(7, 15))}
    short = {"input_ids": [4, 5, 6], "labels": [-100, 5, 6]}
    prompt = {"input_ids": list(range(3, 12)), "labels": [-100] * 8 + [11]}
    data = Dataset.from_list([long, short, prompt])
    assert printed(data) == []
    (line,) = printed(data, max_length=6)
    assert line == (
        "train data: 3 rows; 2 cut to max_length=6 (7 response tokens lost); 1 without response tokens left, dropped"
    )
    (line,) = printed(data, max_length=6, packing=True)
    assert "2 cut to max_length=6 (7 response tokens lost); 1 without response tokens left, kept without loss" in line
    assert printed(data, max_length=6, packing=True, packing_strategy="bfd_split") == []


# ---- probe.jsonl


@pytest.mark.parametrize("packing", [False, True])
def test_the_probe_has_three_moments(tmp_path, packing):
    fields = {"packing": True, "max_length": 30} if packing else {}
    data = rows(8, side="token_weight")
    model = tiny_model("llama", VOCABULARY, torch.float64)
    first = plain_losses(model, [{**row, "labels": row["input_ids"]} for row in data])
    trainer = UncertuneTrainer(
        model,
        settings(tmp_path, objective="masked_mle", max_steps=4, per_device_train_batch_size=8, **fields),
        train_dataset=data,
        processing_class=tiny_tokenizer(),
    )
    trainer.add_callback(Probe(trainer))
    trainer.train()
    lines = [json.loads(line) for line in (tmp_path / "probe.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [0, 2, 4]
    known = [[round(value, 4) for value in losses.tolist()] for losses in first.values()]
    for line in lines:
        assert len(line["documents"]) == (4 if not packing else min(4, len(trainer.train_dataset)))
        answers = sum(sum(document["response"]) for document in line["documents"])
        assert sum(sum(document["selected"]) for document in line["documents"]) == exact_count(0.25, answers)
        for document in line["documents"]:
            assert document["loss"][0] is None
            assert len({len(document[key]) for key in ("text", "loss", "response", "selected")}) == 1
            assert not any(np.array(document["selected"]) & ~np.array(document["response"]))
    assert all(document["loss"][1:] in known for document in lines[0]["documents"])
    assert lines[0]["documents"] != lines[2]["documents"]


def test_the_probe_passes_over_prompts_too_long_to_score(tmp_path, monkeypatch):
    monkeypatch.setattr("uncertune.training.probe.TOKENS", 2)
    long = Dataset.from_list([{"input_ids": list(range(3, 12)), "labels": [-100] * 8 + [11]}] * 4)
    trainer = UncertuneTrainer(
        tiny_model("llama", VOCABULARY),
        settings(tmp_path),
        train_dataset=long,
        processing_class=tiny_tokenizer(),
    )
    trainer.add_callback(Probe(trainer))
    trainer.train()
    assert not (tmp_path / "probe.jsonl").exists()
