"""With ``objective="mle"`` the trainer gives the losses of TRL's ``SFTTrainer`` (SPEC B7)."""

from pathlib import Path
from typing import Any

import pytest
from trl import SFTConfig, SFTTrainer

from helpers.parity import FORMS, losses
from uncertune import UncertuneConfig, UncertuneTrainer
from uncertune.runs import read_metrics

PRECISION = {"float32": {"bf16": False}, "default": {}}
"""``default`` is TRL's: bfloat16 autocast, with the same rounding at every place that trains. There the learning rate
is TRL's default too: a larger one lifts one different bit above the tolerance within five steps, in TRL against itself.
"""


def test_the_auxiliary_loss_is_in_every_steps_record(tmp_path):
    losses(UncertuneTrainer, UncertuneConfig, tmp_path, "text", "mixtral", False, bf16=False)
    steps = read_metrics(tmp_path / "UncertuneTrainer" / "metrics.jsonl", "step")
    assert len(steps) == 5
    assert all(row["aux_loss"] > 0 for row in steps)


def both(folder: Path, form: str = "text", kind: str = "llama", lora: bool = False, **fields: Any) -> Any:
    theirs = losses(SFTTrainer, SFTConfig, folder, form, kind, lora, **fields)
    ours = losses(UncertuneTrainer, UncertuneConfig, folder, form, kind, lora, **fields)
    return theirs, ours


def assert_same(theirs: Any, ours: Any) -> None:
    assert len(ours[0]) == 5
    assert abs(theirs[0][0] - theirs[0][-1]) > 1e-3  # training moved
    assert ours[0] == pytest.approx(theirs[0], abs=1e-5)
    assert ours[1] == pytest.approx(theirs[1], rel=1e-4)
    assert ours[2] == pytest.approx(theirs[2], abs=1e-5)
    assert ours[3] == pytest.approx(theirs[3], abs=1e-5)


@pytest.mark.parametrize(
    ("lora", "precision"),
    [
        pytest.param(False, "float32", id="dense-float32"),
        pytest.param(False, "default", id="dense-default", marks=pytest.mark.slow),
        pytest.param(True, "float32", id="lora-float32"),
        pytest.param(True, "default", id="lora-default"),
    ],
)
@pytest.mark.parametrize("form", FORMS)
def test_the_losses_are_trls(tmp_path, form, lora, precision):
    assert_same(*both(tmp_path, form, lora=lora, **PRECISION[precision]))


@pytest.mark.parametrize("precision", PRECISION)
def test_packed(tmp_path, precision):
    packed = {"packing": True, "max_length": 80, "eval_packing": True, "num_train_epochs": 3}
    assert_same(*both(tmp_path, "prompt and completion", lora=True, **packed, **PRECISION[precision]))


@pytest.mark.parametrize("precision", PRECISION)
@pytest.mark.parametrize("kind", ["gemma2", "cohere", "mixtral", "phi"])
def test_heads_that_do_more(tmp_path, kind, precision):
    """Soft-cap, logit scale, the auxiliary loss of a mixture of experts, and a biased head trained in full."""
    theirs, ours = both(tmp_path, kind=kind, **PRECISION[precision])
    assert_same(theirs, ours)
    assert (max(ours[3]) > 0) == (kind == "mixtral")


def test_other_settings_that_touch_the_loss(tmp_path):
    """Clipping, weight decay, warm-up, gradient checkpointing, truncation, shuffling and an odd last step."""
    fields = {
        "bf16": False,
        "max_steps": -1,
        "num_train_epochs": 1,
        "per_device_train_batch_size": 3,
        "gradient_accumulation_steps": 2,
        "max_length": 120,
        "weight_decay": 0.1,
        "warmup_steps": 2,
        "max_grad_norm": 0.5,
        "gradient_checkpointing": True,
        "lr_scheduler_type": "cosine",
        "shuffle_dataset": True,
    }
    theirs, ours = both(tmp_path, "messages, assistant only", lora=True, **fields)
    assert len(ours[0]) == 4  # 20 rows in steps of 6, 6, 6 and 2
    assert ours[0] == pytest.approx(theirs[0], abs=1e-5)
    assert ours[2] == pytest.approx(theirs[2], abs=1e-5)


def test_another_objective_would_be_seen(tmp_path):
    """The comparison has teeth: a quarter of the tokens is not MLE."""
    theirs = losses(SFTTrainer, SFTConfig, tmp_path, "text", "llama", True, bf16=False)
    fields = {"bf16": False, "objective": "masked_mle"}
    ours = losses(UncertuneTrainer, UncertuneConfig, tmp_path, "text", "llama", True, **fields)
    with pytest.raises(AssertionError):
        assert_same(theirs, ours)
