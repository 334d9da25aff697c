"""``teacher_checkpoint``: the teacher is stage 1 at its last step, or at its best evaluation."""

import json

import pytest
from safetensors.torch import load_file

from helpers.run_files import run_file
from uncertune import UncertuneConfig
from uncertune.cli import main
from uncertune.errors import UserError


def test_the_best_teacher_is_the_evaluation_of_lowest_loss(tmp_path):
    path = run_file(
        tmp_path,
        rows=12,
        test_split_size=0.25,
        objective="distill",
        teacher_checkpoint="best",
        assistant_only_loss=True,
        eval_strategy="epoch",
        num_train_epochs=3,
        per_device_train_batch_size=4,
        learning_rate=0.5,  # so high that a later evaluation is worse
        lr_scheduler_type="constant",
        use_cpu=True,
        bf16=False,
        report_to="none",
        output_dir=str(tmp_path / "out"),
    )
    assert main(["train", "--config", str(path)]) == 0
    stage_1 = tmp_path / "out" / "stage1"
    found = [json.loads(line) for line in (stage_1 / "metrics.jsonl").read_text().splitlines()]
    losses = {row["step"]: row["eval_loss"] for row in found if row["kind"] == "eval" and "eval_loss" in row}
    best = min(losses, key=losses.get)
    assert best < max(losses)
    kept, chosen = (load_file(one / "adapter_model.safetensors") for one in (stage_1, stage_1 / f"checkpoint-{best}"))
    assert all(kept[name].equal(chosen[name]) for name in chosen)


@pytest.mark.parametrize("given", [{"teacher": "runs/mine"}, {"teacher": "auto"}])
def test_the_best_teacher_needs_its_own_stage_1_and_evaluations(given, tmp_path):
    with pytest.raises(UserError, match="teacher_checkpoint='best' is the best evaluation of stage 1"):
        UncertuneConfig(
            output_dir=str(tmp_path), objective="distill", teacher_checkpoint="best", use_cpu=True, bf16=False, **given
        )
