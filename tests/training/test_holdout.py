"""``rho_reference: auto``: a tenth of the data trains the reference, and neither stage ever sees it (SPEC S9)."""

from __future__ import annotations

import json

import pytest
from datasets import Dataset, IterableDataset
from peft import LoraConfig

from helpers.harness import rows, settings
from helpers.tiny import save_tiny, tiny_tokenizer
from uncertune.errors import UserError
from uncertune.training import pipeline
from uncertune.training.holdout import held_out
from uncertune.training.pipeline import Job

ROWS = 40


def texts(data) -> list[tuple[int, ...]]:
    return [tuple(row["input_ids"]) for row in data]


# ---- the split


def test_a_tenth_is_held_out_whatever_the_order():
    data = rows(ROWS)
    rest, holdout = held_out(data, seed=0)
    assert (len(rest), len(holdout)) == (36, 4)
    assert sorted(texts(rest) + texts(holdout)) == sorted(texts(data))
    assert texts(rest) == [text for text in texts(data) if text in set(texts(rest))]  # in their old order
    backwards = held_out(data.select(range(ROWS - 1, -1, -1)), seed=0)
    assert set(texts(backwards[1])) == set(texts(holdout))
    assert set(texts(held_out(data, seed=1)[1])) != set(texts(holdout))


def test_equal_rows_stay_together():
    twice = Dataset.from_list([row for row in rows(ROWS) for _ in range(2)])
    rest, holdout = held_out(twice, seed=0)
    assert len(rest) + len(holdout) == 2 * ROWS
    assert not set(texts(rest)) & set(texts(holdout))


@pytest.mark.parametrize("data", [rows(1), Dataset.from_list([rows(1)[0]] * 30)], ids=["one row", "all equal"])
def test_data_that_cannot_be_split_is_refused(data):
    with pytest.raises(UserError, match="too few or all equal"):
        held_out(data, seed=0)


def test_streams_are_refused():
    with pytest.raises(UserError, match="dataset_streaming"):
        held_out(IterableDataset.from_generator(lambda: iter(rows(3))), seed=0)


# ---- the run


def job(folder, base, *, data=None, **fields) -> Job:
    options = {"selection_metric": "rho", "rho_reference": "auto", "selection_fraction": 0.5, **fields}
    return Job(
        model=str(base),
        config=settings(folder, per_device_train_batch_size=4, max_steps=-1, num_train_epochs=1, **options),
        train_dataset=rows(ROWS) if data is None else data,
        eval_dataset=rows(4, seed=9),
        peft_config=LoraConfig(r=4, lora_dropout=0.1, target_modules="all-linear", task_type="CAUSAL_LM"),
        processing_class=tiny_tokenizer(),
    )


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return save_tiny(tmp_path_factory.mktemp("holdout") / "base")


@pytest.fixture
def trained(monkeypatch):
    """(folder's name, objective, texts) of every trainer that is built, in order."""
    build, found = pipeline.build_trainer, []

    def watched(job):
        trainer = build(job)
        found.append((job.folder.name, job.config.objective, texts(trainer.train_dataset)))
        return trainer

    monkeypatch.setattr(pipeline, "build_trainer", watched)
    return found


S5 = {"objective": "masked_mle_distill", "teacher": "auto"}


def test_the_reference_comes_first_and_never_trains_on_what_it_scores(tmp_path, base, trained, capsys):
    out = pipeline.run(job(tmp_path / "run", base, **S5))
    assert [(name, objective) for name, objective, _ in trained] == [
        ("rho_reference", "mle"),
        ("stage1", "mle"),
        ("run", "masked_mle_distill"),
    ]
    (_, _, reference), (_, _, first), (_, _, second) = trained
    assert first == second
    assert not set(reference) & set(first)
    assert sorted(reference + first) == sorted(texts(rows(ROWS)))
    assert "holds out 4 of 40 rows" in capsys.readouterr().err
    scored = json.loads((out / "teacher_cache" / "rho" / "manifest.json").read_text())
    assert scored["about"]["kind"] == "loss"
    assert {path.name for path in out.iterdir()} >= {"rho_reference", "stage1", "adapter_model.safetensors"}
    # again: nothing is trained
    before = (out / "adapter_model.safetensors").stat().st_mtime_ns
    pipeline.run(job(tmp_path / "run", base, **S5))
    assert (out / "adapter_model.safetensors").stat().st_mtime_ns == before


def test_a_second_run_ends_with_the_same_bytes_and_the_folder_named_does_too(tmp_path, base):
    """``auto`` is the run on nine tenths whose ``rho_reference`` is the folder that ``auto`` trained."""
    masked = {"objective": "masked_mle"}
    first, second = (pipeline.run(job(tmp_path / name, base, **masked)) for name in ("first", "second"))
    rest, _ = held_out(rows(ROWS), seed=42)
    named = {**masked, "rho_reference": str(first / "rho_reference")}
    third = pipeline.run(job(tmp_path / "third", base, data=rest, **named))
    other = {**masked, "selection_metric": "loss", "rho_reference": None}
    fourth = pipeline.run(job(tmp_path / "fourth", base, data=rest, **other))
    result, masks = "adapter_model.safetensors", "selection.parquet"
    for name in (result, masks):
        assert (first / name).read_bytes() == (second / name).read_bytes(), name
        assert (first / name).read_bytes() == (third / name).read_bytes(), name
        assert (first / name).read_bytes() != (fourth / name).read_bytes(), name
    kept = [(folder / "rho_reference" / result).read_bytes() for folder in (first, second)]
    assert kept[0] == kept[1]


def test_rows_that_the_trainer_was_not_built_with_are_refused_by_name(tmp_path, base):
    out = pipeline.run(job(tmp_path / "run", base, objective="masked_mle"))
    again = job(
        tmp_path / "again",
        base,
        data=held_out(rows(ROWS), seed=42)[0],
        objective="masked_mle",
        rho_reference=str(out / "rho_reference"),
    )
    trainer = pipeline.build_trainer(again)
    assert "eval_objective" in trainer.evaluate()
    with pytest.raises(
        UserError, match=r"eval_dataset: .* train_dataset and eval_dataset: give them when the trainer is built"
    ):
        trainer.evaluate(
            eval_dataset=trainer._prepare_dataset(
                rows(4, seed=3), trainer.processing_class, trainer.args, False, None, "eval"
            )
        )
