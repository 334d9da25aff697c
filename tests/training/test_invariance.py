"""How an optimizer step is cut changes neither the mask, nor the loss, nor the gradient (SPEC B1)."""

import pytest
import torch
from datasets import Dataset
from transformers import CONFIG_MAPPING

from helpers.harness import VOCABULARY, relative_difference, rows, run
from helpers.tiny import tiny_model
from uncertune import UncertuneTrainer
from uncertune.training.step import has_noise

CUTS = ((8, 1), (4, 2), (2, 4))
PACKED_CUTS = ((4, 1), (2, 2), (1, 4))

# name → (fields of the configuration, side column, whether a teacher is needed)
VARIANTS = {
    "mle": ({"objective": "mle"}, None, False),
    "mle, weighted": ({"objective": "mle"}, "token_weight", False),
    "masked_mle": ({"objective": "masked_mle"}, None, False),
    "masked_mle, document": ({"objective": "masked_mle", "selection_level": "document"}, None, False),
    "masked_mle, entropy": ({"objective": "masked_mle", "selection_metric": "entropy"}, None, False),
    "masked_mle, bald": ({"objective": "masked_mle", "selection_metric": "bald", "bald_samples": 3}, None, False),
    "masked_mle, random": ({"objective": "masked_mle", "selection_metric": "random"}, None, False),
    "masked_mle, random documents": (
        {"objective": "masked_mle", "selection_metric": "random", "selection_level": "document"},
        None,
        False,
    ),
    "masked_mle, by selected": ({"objective": "masked_mle", "normalize_by": "selected"}, None, False),
    "masked_mle, lowest": ({"objective": "masked_mle", "selection_order": "lowest"}, None, False),
    "masked_mle, middle documents": (
        {
            "objective": "masked_mle",
            "selection_order": "middle",
            "selection_level": "document",
            "selection_fraction": 0.3,
        },
        None,
        False,
    ),
    "masked_mle, threshold": ({"objective": "masked_mle", "selection_threshold": 6.0}, None, False),
    "masked_mle, threshold of documents": (
        {"objective": "masked_mle", "selection_threshold": 6.5, "selection_level": "document"},
        None,
        False,
    ),
    "masked_mle, threshold from below, by selected": (
        {
            "objective": "masked_mle",
            "selection_threshold": 5.5,
            "selection_order": "lowest",
            "normalize_by": "selected",
        },
        None,
        False,
    ),
    "masked_mle, rho": (
        {"objective": "masked_mle", "selection_metric": "rho", "rho_reference": "teacher"},
        None,
        True,
    ),
    "distill": ({"objective": "distill"}, None, True),
    "truncated_distill, plain": ({"objective": "truncated_distill", "teacher_top_k": 5}, None, True),
    "truncated_distill, tail": (
        {"objective": "truncated_distill", "teacher_top_k": 5, "teacher_truncation": "tail"},
        None,
        True,
    ),
    "masked_mle_distill": ({"objective": "masked_mle_distill"}, None, True),
    "masked_mle_distill, document": ({"objective": "masked_mle_distill", "selection_level": "document"}, None, True),
    "masked_mle_distill, weighted": ({"objective": "masked_mle_distill"}, "token_weight", True),
    "policy_gradient": ({"objective": "policy_gradient"}, "advantages", False),
    "policy_gradient, dense": ({"objective": "policy_gradient"}, "advantages_dense", False),
    "oracle": ({"objective": "oracle"}, "oracle", False),
}
VARIANT = pytest.mark.parametrize("variant", VARIANTS)


def cut(folder, variant, size, accumulation, *, count=8, dtype=torch.float64, **more):
    fields, side, taught = VARIANTS[variant]
    return run(
        folder / f"{size}x{accumulation}",
        data=rows(count, side=side),
        dtype=dtype,
        teacher=tiny_model("llama", VOCABULARY, dtype, seed=5) if taught else None,
        per_device_train_batch_size=size,
        gradient_accumulation_steps=accumulation,
        **{**fields, **more},
    )


def assert_same(steps, tolerance):
    whole = steps[0]
    assert float(sum(g.abs().sum() for g in whole.gradient.values())) > 0
    for step in steps[1:]:
        assert step.masks == whole.masks
        assert step.loss == pytest.approx(whole.loss, rel=tolerance)
        assert relative_difference(step.gradient, whole.gradient) < tolerance
        for name in (
            "selected_fraction",
            "selection_threshold",
            "nll_selected",
            "nll_unselected",
            "loss_part_selected",
            "entropy",
        ):
            if name in whole.metrics[-1]:
                assert step.metrics[-1][name] == pytest.approx(whole.metrics[-1][name], rel=tolerance), name


@VARIANT
def test_cuts_agree_in_float64(tmp_path, variant):
    assert_same([cut(tmp_path, variant, *one) for one in CUTS], 1e-9)


@pytest.mark.parametrize("variant", ["mle", "masked_mle", "masked_mle_distill, document", "policy_gradient", "oracle"])
def test_cuts_agree_in_float32(tmp_path, variant):
    assert_same([cut(tmp_path, variant, *one, dtype=torch.float32) for one in CUTS], 1e-5)


@VARIANT
def test_cuts_of_packed_rows_agree(tmp_path, variant):
    packed = {"packing": True, "max_length": 30, "padding_free": True}
    steps = [cut(tmp_path, variant, *one, count=16, **packed) for one in PACKED_CUTS]
    assert_same(steps, 1e-9)
    if steps[0].masks:
        assert len(steps[0].masks) > 4  # more documents than rows


def test_the_mask_does_not_see_router_noise(tmp_path):
    noisy = [
        run(
            tmp_path / f"{size}x{accumulation}",
            model=tiny_model("mixtral", VOCABULARY, router_jitter_noise=0.3),
            dtype=torch.float32,
            lora=False,
            data=rows(8),
            objective="masked_mle",
            per_device_train_batch_size=size,
            gradient_accumulation_steps=accumulation,
        )
        for size, accumulation in CUTS
    ]
    assert noisy[0].masks == noisy[1].masks == noisy[2].masks


@pytest.mark.parametrize(
    ("fields", "expected"),
    [({}, False), ({"attn_config": {"attn_pdrop": 0.1}}, True), ({"ffn_config": {"moe_jitter_eps": 0.01}}, True)],
)
def test_noise_in_a_nested_configuration_is_seen(fields, expected):
    model = torch.nn.Module()
    model.config = CONFIG_MAPPING["dbrx"](d_model=16, n_heads=2, n_layers=1, **fields)
    assert has_noise(model) == expected


@pytest.mark.parametrize("variant", ["masked_mle", "masked_mle_distill, document", "masked_mle, entropy"])
def test_the_mask_does_not_see_dropout(tmp_path, variant):
    steps = [cut(tmp_path, variant, *one, lora={"lora_dropout": 0.4}) for one in CUTS]
    without = cut(tmp_path / "without", variant, *CUTS[0])
    assert all(step.masks == without.masks for step in steps)
    assert relative_difference(steps[0].gradient, without.gradient) > 0.01  # dropout is on in the training forward


def test_a_wrong_factor_would_be_seen(tmp_path, monkeypatch):
    """The comparison above has teeth: one per cent on the loss of the cut step is far outside its tolerance."""
    whole = cut(tmp_path, "masked_mle_distill", 8, 1)
    right = UncertuneTrainer._training_loss
    monkeypatch.setattr(UncertuneTrainer, "_training_loss", lambda *args: right(*args) * 1.01)
    wrong = cut(tmp_path, "masked_mle_distill", 4, 2)
    with pytest.raises(AssertionError):
        assert_same([whole, wrong], 1e-5)
    assert relative_difference(wrong.gradient, whole.gradient) == pytest.approx(0.01, rel=1e-4)


def test_packing_changes_nothing_but_the_rows(tmp_path):
    """The same eight documents, padded or packed into one step, have the same masks, loss and gradient."""
    padded = cut(tmp_path / "padded", "masked_mle_distill", 8, 1)
    packed = cut(tmp_path / "packed", "masked_mle_distill", 8, 1, packing=True, max_length=30)
    assert packed.trainer.args.packing
    assert {name for _, name in padded.masks} == {name for _, name in packed.masks}
    assert padded.masks == packed.masks
    assert packed.loss == pytest.approx(padded.loss, rel=1e-9)
    assert relative_difference(packed.gradient, padded.gradient) < 1e-9


def test_microbatch_scope_ranks_each_micro_batch_alone(tmp_path):
    whole = cut(tmp_path, "masked_mle", 8, 1, selection_scope="microbatch")
    batch = cut(tmp_path / "batch", "masked_mle", 8, 1)
    assert whole.masks == batch.masks
    pieces = cut(tmp_path, "masked_mle", 2, 4, selection_scope="microbatch")
    assert pieces.masks != whole.masks
    dropped = cut(tmp_path / "dropout", "masked_mle", 2, 4, selection_scope="microbatch", lora={"lora_dropout": 0.4})
    assert dropped.masks == pieces.masks


@pytest.mark.parametrize("level", ["token", "document"])
def test_microbatch_scope_draws_by_the_documents_place_in_the_step(tmp_path, level):
    """``random`` gives micro-batches of one shape different masks: every document of a step has its own numbers."""
    ids = torch.randint(3, VOCABULARY, (16, 12), generator=torch.Generator().manual_seed(0)).tolist()
    step = run(
        tmp_path,
        data=Dataset.from_list([{"input_ids": row, "labels": row} for row in ids]),
        per_device_train_batch_size=2,
        gradient_accumulation_steps=8,
        objective="masked_mle",
        selection_metric="random",
        selection_fraction=0.5,
        selection_level=level,
        selection_scope="microbatch",
    )
    masks = list(step.masks.values())
    assert len(masks) == 16
    assert len(set(zip(masks[::2], masks[1::2], strict=True))) > 1


def test_an_all_masked_micro_batch_still_reaches_every_parameter(tmp_path):
    """Document level at a small fraction leaves whole micro-batches without weight."""
    step = cut(
        tmp_path,
        "masked_mle, document",
        1,
        8,
        selection_fraction=0.1,
    )
    whole = cut(tmp_path, "masked_mle, document", 8, 1, selection_fraction=0.1)
    assert sum(any(mask) for mask in step.masks.values()) == 1
    assert step.gradient.keys() == whole.gradient.keys()
    assert relative_difference(step.gradient, whole.gradient) < 1e-9
