"""A cached teacher is the live one to the rounding of its hidden states, and is not needed any more (SPEC B6)."""

import json
import re
import sys

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig

import uncertune.training.references as references_module
from helpers.adapters import adapter
from helpers.harness import LORA, VOCABULARY, relative_difference, rows, run, settings
from helpers.tiny import save_tiny, tiny_model, tiny_tokenizer
from uncertune import UncertuneTrainer
from uncertune.errors import UserError
from uncertune.runs import notes, read_metrics
from uncertune.teachers import cache
from uncertune.training.teacher_cache import Cached, Caches

BFLOAT16 = 2**-8
"""Relative rounding of bfloat16; the loss, an expectation of log-probabilities, moves by less than twice as much."""
CUT = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2, "max_steps": 3}
S5 = {"objective": "masked_mle_distill", **CUT}


@pytest.fixture
def teacher(tmp_path):
    return adapter(tmp_path / "teacher")


def losses(step):
    return [entry["loss"] for entry in step.metrics]


@pytest.fixture
def never_loaded(monkeypatch):
    """From when it is called on, nothing may load a teacher."""

    def switch():
        def refuse(*args, **kwargs):
            raise AssertionError("a teacher is loaded")

        monkeypatch.setattr(references_module, "load_teacher", refuse)

    return switch


# ---- the same loss

VARIANTS = {
    "masked_mle_distill": S5,
    "distill": {"objective": "distill", **CUT},
    "truncated_distill": {"objective": "truncated_distill", "teacher_top_k": 9, **CUT},
    "masked_mle_distill, packed": {**S5, "packing": True, "max_length": 30},
    "masked_mle_distill, checkpointing, dropout": {**S5, "gradient_checkpointing": True, "lora": {"lora_dropout": 0.2}},
    "distill, noise": {"objective": "distill", "neftune_noise_alpha": 5.0, **CUT},
}


@pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS)
def test_hidden_states_give_the_live_loss_to_rounding(tmp_path, teacher, variant):
    common = {"data": rows(16), "teacher": teacher, "learning_rate": 0.0, **variant}  # all gradients at one point
    live, kept = run(tmp_path / "live", **common), run(tmp_path / "kept", teacher_cache="hidden", **common)
    assert losses(kept) == pytest.approx(losses(live), rel=2 * BFLOAT16)
    assert losses(kept) != losses(live)  # it is rounded, so this is the cache
    assert relative_difference(kept.gradient, live.gradient) < 0.05
    if "masked" in variant["objective"]:
        first = [{key: mask for key, mask in step.masks.items() if key[0] == 1} for step in (live, kept)]
        assert first[0] == first[1]
    other = run(tmp_path / "other", **{**common, "teacher": adapter(tmp_path / "two", seed=4)})
    assert abs(losses(other)[0] - losses(live)[0]) > 2 * abs(losses(kept)[0] - losses(live)[0])


def test_hidden_states_of_a_half_precision_model_lose_nothing(tmp_path, teacher):
    common = {"data": rows(8), "teacher": teacher, "objective": "distill", "dtype": torch.bfloat16}
    live = run(tmp_path / "live", per_device_train_batch_size=8, **common)
    kept = run(tmp_path / "kept", per_device_train_batch_size=8, teacher_cache="hidden", **common)
    assert kept.loss == pytest.approx(live.loss, rel=1e-3)  # padded otherwise, a product may round otherwise


@pytest.mark.parametrize("truncation", ["plain", "renormalized", "tail"])
def test_top_k_is_the_live_top_k(tmp_path, teacher, truncation):
    fields = {"objective": "truncated_distill", "teacher_top_k": 9, "teacher_truncation": truncation, **CUT}
    common = {"data": rows(16), "teacher": teacher, **fields}
    live, kept = run(tmp_path / "live", **common), run(tmp_path / "kept", teacher_cache="topk", **common)
    assert losses(kept) == pytest.approx(losses(live), rel=1e-5)
    assert relative_difference(kept.gradient, live.gradient) < 1e-4


def test_a_smaller_k_reads_the_same_cache_and_a_larger_one_is_refused(tmp_path, teacher, never_loaded):
    common = {"data": rows(16), "teacher": teacher, "objective": "truncated_distill", **CUT}
    shared = {"teacher_cache": "topk", "teacher_cache_dir": str(tmp_path / "shared")}
    run(tmp_path / "nine", teacher_top_k=9, **common, **shared)
    live = run(tmp_path / "live", teacher_top_k=4, **common)
    never_loaded()
    assert losses(run(tmp_path / "four", teacher_top_k=4, **common, **shared)) == pytest.approx(losses(live), rel=1e-5)
    with pytest.raises(UserError, match="top_k"):
        run(tmp_path / "ten", teacher_top_k=10, **common, **shared)


@pytest.mark.parametrize("lora", [True, False], ids=["lora", "full"])
def test_a_teacher_with_a_head_of_its_own(tmp_path, lora, never_loaded):
    """The head is kept with the hidden states, soft-cap included, and read where the student's is another."""
    model = save_tiny(tmp_path / "teacher", "gemma2", seed=7, final_logit_softcapping=3.0)
    common = {"data": rows(16), "teacher": str(model), "kind": "gemma2", "lora": lora, "learning_rate": 0.0, **S5}
    live, kept = run(tmp_path / "live", **common), run(tmp_path / "kept", teacher_cache="hidden", **common)
    assert losses(kept) == pytest.approx(losses(live), rel=2 * BFLOAT16)
    assert relative_difference(kept.gradient, live.gradient) < 0.05
    assert kept.trainer.references.teacher is None  # let go of
    never_loaded()
    folder = str(tmp_path / "kept" / "teacher_cache")
    again = run(tmp_path / "again", teacher_cache="hidden", teacher_cache_dir=folder, **common)
    assert losses(again) == losses(kept)


def test_a_cache_made_beside_a_frozen_head_serves_a_trained_one(tmp_path):
    """LoRA and full fine-tuning may share a cache: the second reads the head that the first stored."""
    base = save_tiny(tmp_path / "teacher", seed=0)
    common = {"data": rows(16), "teacher": str(base), "objective": "distill", **CUT}
    shared = {"teacher_cache": "hidden", "teacher_cache_dir": str(tmp_path / "shared")}
    run(tmp_path / "lora", **common, **shared)
    live, kept = run(tmp_path / "live", lora=False, **common), run(tmp_path / "full", lora=False, **common, **shared)
    assert losses(kept) == pytest.approx(losses(live), rel=2 * BFLOAT16)
    assert losses(kept) != losses(live)


# ---- the teacher is not needed


def test_a_full_cache_needs_no_teacher_however_the_data_is_cut(tmp_path, teacher, never_loaded):
    shared = {"teacher_cache": "hidden", "teacher_cache_dir": str(tmp_path / "shared"), "data": rows(16)}
    first = run(tmp_path / "first", teacher=teacher, **S5, **shared)
    never_loaded()
    again = run(tmp_path / "again", teacher=teacher, **S5, **shared)
    assert losses(again) == losses(first)
    assert list(again.trainer.model.peft_config) == ["default"]
    packed = {"packing": True, "max_length": 30, "seed": 5}
    cut = run(tmp_path / "packed", teacher=teacher, **S5, **shared, **packed)
    whole = run(tmp_path / "whole", teacher=teacher, **S5, **shared, seed=5)
    assert cut.trainer.references.teacher is None
    assert whole.loss != first.loss  # another order


def test_evaluation_reads_the_cache_too(tmp_path, teacher, never_loaded):
    def trainer(folder, **fields):
        return UncertuneTrainer(
            tiny_model("llama", VOCABULARY),
            settings(tmp_path / folder, **S5, **fields),
            train_dataset=rows(16),
            eval_dataset={"one": rows(6, seed=1), "two": rows(4, seed=2)},
            processing_class=tiny_tokenizer(),
            peft_config=LoraConfig(**LORA),
            teacher=teacher,
        )

    def objectives(folder):
        logged = read_metrics(tmp_path / folder / "metrics.jsonl", "eval")
        names = ("eval_one_objective", "eval_two_objective")
        return [row[name] for row in logged for name in names if name in row]

    trainer("live").evaluate()
    trainer("kept", teacher_cache="hidden").fill_teacher_cache()
    never_loaded()
    kept = trainer("kept", teacher_cache="hidden")
    kept.evaluate()
    assert len(objectives("live")) == 2
    assert objectives("kept") == pytest.approx(objectives("live"), rel=2 * BFLOAT16)
    with pytest.raises(UserError, match=r"not in .* train_dataset and eval_dataset"):
        kept.evaluate(rows(4, seed=9))


def test_filling_ahead_changes_nothing(tmp_path, teacher, monkeypatch, capsys):
    monkeypatch.setattr(notes, "SHARED", True)  # as in one of several processes of a sweep: no bar
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    common = {"data": rows(16), "teacher": teacher, "teacher_cache": "hidden", **S5}
    plain = run(tmp_path / "plain", **common)
    trainer = UncertuneTrainer(
        tiny_model("llama", VOCABULARY, torch.float64),
        settings(tmp_path / "ahead", teacher_cache="hidden", disable_tqdm=False, **S5),
        train_dataset=rows(16),
        processing_class=tiny_tokenizer(),
        peft_config=LoraConfig(**LORA),
        teacher=teacher,
    )
    trainer.fill_teacher_cache()
    assert "hidden cache: 0%" not in re.sub(" +", " ", capsys.readouterr().err)
    shared = str(tmp_path / "ahead" / "teacher_cache")
    assert losses(run(tmp_path / "after", teacher_cache_dir=shared, **common)) == losses(plain)


def test_filling_in_a_file_says_how_far_it_is(tmp_path, teacher, monkeypatch, capsys):
    monkeypatch.setattr(notes, "NOTE_SECONDS", 0.0)
    run(tmp_path / "run", data=rows(40), teacher=teacher, teacher_cache="hidden", disable_tqdm=False, **S5)
    assert re.search(r"^hidden cache: [\d,]+ of [\d,]+ tokens, \d+:\d\d left$", capsys.readouterr().err, re.M)


@pytest.mark.parametrize(("train", "evaluate"), [(4, 1), (2, 4)])
def test_filling_takes_the_larger_batch_of_the_two(train, evaluate, tmp_path, teacher, monkeypatch):
    sizes = []
    right = Cached._compute
    monkeypatch.setattr(
        Cached, "_compute", lambda self, model, some: sizes.append(len(some)) or right(self, model, some)
    )
    fields = {"per_device_train_batch_size": train, "per_device_eval_batch_size": evaluate}
    run(tmp_path / "run", data=rows(16), teacher=teacher, teacher_cache="hidden", **{**S5, **fields, "max_steps": 1})
    assert sizes == [4, 4, 4, 4]


# ---- as documents come


def test_the_first_epoch_fills_and_the_second_reads(tmp_path, teacher, monkeypatch):
    passes = []
    right = cache.columns_of
    monkeypatch.setattr(cache, "columns_of", lambda *args: passes.append(1) or right(*args))
    common = {"data": rows(16), "teacher": teacher, **S5, "max_steps": 4}
    kept = run(tmp_path / "kept", teacher_cache="hidden", teacher_cache_fill="first_epoch", **common)
    assert len(passes) == 4  # micro-batches of the first epoch; there are two epochs
    assert losses(kept) == pytest.approx(losses(run(tmp_path / "live", **common)), rel=2 * BFLOAT16)
    shared = str(tmp_path / "kept" / "teacher_cache")
    again = run(tmp_path / "again", teacher_cache="hidden", teacher_cache_dir=shared, **common)
    assert losses(again) == losses(kept)
    assert len(passes) == 4


def test_streams_fill_as_they_come_and_not_ahead(tmp_path, teacher):
    stream = rows(16).to_iterable_dataset()
    common = {"teacher": teacher, "teacher_cache": "hidden", **S5, "max_steps": 2}
    with pytest.raises(UserError, match="teacher_cache_fill"):
        run(tmp_path / "ahead", data=stream, **common)
    live = run(tmp_path / "live", data=stream, **{**common, "teacher_cache": "none"})
    kept = run(tmp_path / "kept", data=stream, teacher_cache_fill="first_epoch", **common)
    assert losses(kept) == pytest.approx(losses(live), rel=2 * BFLOAT16)


# ---- whose cache, and is it whole


def renamed(tokenizer):
    tokenizer.add_tokens(["<extra>"])
    return tokenizer


def test_what_differs_is_named(tmp_path, teacher):
    shared = {"teacher_cache": "hidden", "teacher_cache_dir": str(tmp_path / "shared"), "objective": "distill"}

    def build(folder, *, data=None, tokenizer=None, taught=teacher, dtype=torch.float32):
        return UncertuneTrainer(
            tiny_model("llama", VOCABULARY, dtype),
            settings(tmp_path / folder, **shared),
            train_dataset=rows(8) if data is None else data,
            processing_class=tiny_tokenizer() if tokenizer is None else tokenizer,
            peft_config=LoraConfig(**LORA),
            teacher=taught,
        )

    build("first").fill_teacher_cache()
    build("again")
    changed = {
        "data": {"data": rows(8, seed=1)},
        "template": {"tokenizer": tiny_tokenizer(marked=True)},
        "tokenizer": {"tokenizer": renamed(tiny_tokenizer())},
        "teacher": {"taught": adapter(tmp_path / "other", seed=4)},
        "precision": {"dtype": torch.float64},
    }
    for name, change in changed.items():
        with pytest.raises(UserError, match="teacher_cache_dir") as caught:
            build(name, **change)
        assert f"another {name} (" in str(caught.value)
    shuffled = rows(8).select([3, 1, 0, 2, 7, 6, 5, 4])
    assert build("order", data=shuffled).references.teacher is None


def test_a_flipped_byte_costs_its_shard_alone(tmp_path, teacher, monkeypatch, capsys):
    monkeypatch.setattr(cache, "SHARD_TOKENS", 40)
    shared = {"teacher_cache": "hidden", "teacher_cache_dir": str(tmp_path / "shared"), "data": rows(16)}
    first = run(tmp_path / "first", teacher=teacher, **S5, **shared)
    folder = tmp_path / "shared" / "hidden"
    written = {path.name: path.stat().st_mtime_ns for path in folder.glob("*.safetensors")}
    bad = sorted(name for name in written if name.startswith("shard"))[1]
    content = bytearray((folder / bad).read_bytes())
    content[-40] ^= 4
    (folder / bad).write_bytes(content)
    again = run(tmp_path / "again", teacher=teacher, **S5, **shared)
    assert losses(again) == losses(first)
    assert f"{bad} is damaged" in capsys.readouterr().err
    after = {path.name: path.stat().st_mtime_ns for path in folder.glob("*.safetensors")}
    assert {name for name in after if after[name] != written[name]} == {bad}
    assert len(after) > 3


def test_a_damaged_head_is_made_again(tmp_path, teacher):
    shared = {"teacher_cache": "hidden", "teacher_cache_dir": str(tmp_path / "shared"), "data": rows(16)}
    first = run(tmp_path / "first", teacher=teacher, **S5, **shared)
    head = tmp_path / "shared" / "hidden" / "head.safetensors"
    content = head.read_bytes()
    head.write_bytes(content[:-3])
    assert losses(run(tmp_path / "again", teacher=teacher, **S5, **shared)) == losses(first)
    assert head.read_bytes() == content


def test_room_is_checked_before_a_run_begins(tmp_path, teacher, monkeypatch, capsys):
    common = {"data": rows(16), "teacher": teacher, "teacher_cache": "hidden", **S5}
    run(tmp_path / "enough", **common)
    assert " tokens of 64 bytes, " in capsys.readouterr().err
    monkeypatch.setattr(cache.shutil, "disk_usage", lambda path: type("Usage", (), {"free": 1000})())
    with pytest.raises(UserError, match=r"teacher_cache_dir.* 1 kB free"):
        run(tmp_path / "full", **common)
    assert not (tmp_path / "full" / "teacher_cache").exists()


# ---- the reference of rho


@pytest.mark.parametrize("objective", ["masked_mle", "masked_mle_distill"])
@pytest.mark.parametrize("source", ["path", "teacher"])
def test_rho_reads_the_references_losses(tmp_path, teacher, monkeypatch, objective, source):
    reference = teacher if source == "path" else "teacher"
    needed = objective == "masked_mle_distill" or source == "teacher"
    fields = {"selection_metric": "rho", "rho_reference": reference, "objective": objective, **CUT}
    common = {"data": rows(16), "teacher": teacher if needed else None, **fields}
    kept = run(tmp_path / "kept", **common)
    again = run(tmp_path / "again", teacher_cache_dir=str(tmp_path / "kept" / "teacher_cache"), **common)
    if source == "path" or objective == "masked_mle":
        assert again.trainer.references.rho is None
    manifest = json.loads((tmp_path / "kept" / "teacher_cache" / "rho" / "manifest.json").read_text())
    assert manifest["about"] == {"kind": "loss"}
    monkeypatch.setattr(references_module, "open_caches", lambda *args: Caches())
    live = run(tmp_path / "live", **common)
    assert kept.masks == again.masks == live.masks
    assert losses(kept) == losses(again) == pytest.approx(losses(live), rel=1e-6)
    by_loss = run(
        tmp_path / "loss",
        **{
            **common,
            "selection_metric": "loss",
            "rho_reference": None,
            "teacher": teacher if objective == "masked_mle_distill" else None,
        },
    )
    assert by_loss.masks != live.masks


def test_rows_without_response_tokens_are_no_documents(tmp_path, teacher):
    data = rows(8).to_list()
    for row in data[:3]:
        row["labels"] = [-100] * len(row["labels"])
    fields = {**S5, "per_device_train_batch_size": 1, "gradient_accumulation_steps": 8, "max_length": None}
    for fill in ("ahead", "first_epoch"):
        common = {"data": Dataset.from_list(data), "teacher": teacher, **fields}
        kept = run(tmp_path / fill, teacher_cache="hidden", teacher_cache_fill=fill, **common)
        live = run(tmp_path / f"live {fill}", **common)
        assert losses(kept) == pytest.approx(losses(live), rel=2 * BFLOAT16)
