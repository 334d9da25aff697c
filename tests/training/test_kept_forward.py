"""With gradient checkpointing the training forwards run before the selection: the same masks, one pass less."""

import pytest
import torch

from helpers.harness import VOCABULARY, relative_difference, rows, run
from helpers.tiny import tiny_model
from uncertune.models import causal_lm

MASKED, BOTH = {"objective": "masked_mle"}, {"objective": "masked_mle_distill"}
MICRO_BATCHES = 4

VARIANTS = {
    "loss": MASKED,
    "entropy": {**MASKED, "selection_metric": "entropy"},
    "rho": {**MASKED, "selection_metric": "rho", "rho_reference": "teacher"},
    "by selected": {**MASKED, "normalize_by": "selected"},
    "a threshold by selected": {**MASKED, "selection_threshold": 6.0, "normalize_by": "selected"},
    "the lowest": {**MASKED, "selection_order": "lowest"},
    "distilled": BOTH,
    "distilled, cached": {**BOTH, "teacher_cache": "hidden"},
    "distilled documents": {**BOTH, "selection_level": "document"},
    "packed": {**BOTH, "packing": True, "padding_free": True, "max_length": 30, "per_device_train_batch_size": 1},
    "mixture of experts": {**MASKED, "kind": "mixtral", "lora": False, "dtype": torch.float32},
    "full fine-tuning": {**BOTH, "lora": False},
}


def step(folder, *, adapter=None, **fields):
    """One optimizer step in four micro-batches, and how often the first layer ran."""
    calls = []

    def count(trainer):
        inside = causal_lm(trainer.model).model.layers[0].input_layernorm  # recomputed in the backward
        inside.register_forward_pre_hook(lambda *_: calls.append(torch.is_grad_enabled()))

    teacher = adapter or tiny_model("llama", VOCABULARY, torch.float64, seed=5)
    taught = "distill" in fields["objective"] or "rho_reference" in fields
    options = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": MICRO_BATCHES, **fields}
    done = run(
        folder,
        data=rows(8 if "packing" not in fields else 13),
        teacher=teacher if taught else None,
        gradient_checkpointing=True,
        prepare=count,
        probe_steps=0,
        **options,
    )
    return done, calls


@pytest.mark.parametrize("variant", VARIANTS)
def test_masks_and_gradients_are_those_of_a_scoring_pass(tmp_path, variant):
    kept, calls = step(tmp_path / "kept", **VARIANTS[variant])
    apart, more = step(tmp_path / "apart", selection_memory_gb=0.0, **VARIANTS[variant])
    assert len(more) - len(calls) == MICRO_BATCHES
    assert len(calls) == 2 * MICRO_BATCHES  # forward and recomputation
    assert kept.masks == apart.masks
    tolerance = 1e-5 if "dtype" in VARIANTS[variant] else 1e-9
    assert kept.loss == pytest.approx(apart.loss, rel=tolerance)
    assert relative_difference(kept.gradient, apart.gradient) < tolerance
    same = {name for name in apart.metrics[-1] if name not in ("kind", "num_tokens")}
    assert {name: kept.metrics[-1][name] for name in same} == pytest.approx(
        {name: apart.metrics[-1][name] for name in same}, rel=tolerance
    )


def test_a_live_adapter_as_teacher(tmp_path):
    run(tmp_path / "teacher", data=rows(8), max_steps=3, lora={"init_lora_weights": True}).trainer.save_model(
        str(tmp_path / "adapter")
    )
    fields = {**BOTH, "adapter": str(tmp_path / "adapter")}
    kept, calls = step(tmp_path / "kept", **fields)
    apart, more = step(tmp_path / "apart", selection_memory_gb=0.0, **fields)
    assert len(more) - len(calls) == MICRO_BATCHES
    assert kept.masks == apart.masks
    assert relative_difference(kept.gradient, apart.gradient) < 1e-9


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        (
            {"selection_memory_gb": 1e-6},
            "scores in a separate forward pass; the layer inputs of 4 micro-batches",
        ),
        ({"lora": {"lora_dropout": 0.1}}, None),
        ({"activation_checkpointing_kwargs": {"use_reentrant": True}}, None),
        ({"max_steps": 2}, "runs a step's forwards before its selection"),
    ],
)
@pytest.mark.filterwarnings("ignore:.*use_reentrant.*")
def test_where_it_does_not_apply_is_said_once(tmp_path, capsys, fields, said):
    _, calls = step(tmp_path, **MASKED, **fields)
    steps, err = fields.get("max_steps", 1), capsys.readouterr().err
    assert len(calls) == (2 if "max_steps" in fields else 3) * MICRO_BATCHES * steps
    assert err.count("selection: ") == (0 if said is None else 1)
    assert (said or "") in err


def test_nothing_keeps_the_graph_after_the_backward(tmp_path):
    done, _ = step(tmp_path, **MASKED)
    from uncertune.training.kept_forward import KeptForward

    hidden = torch.randn(3, 2, requires_grad=True) * 2
    kept = KeptForward(hidden, done.trainer.model, None)
    assert kept.take()[0] is hidden
    assert kept.hidden.grad_fn is None
    with pytest.raises(AssertionError, match="one backward"):
        kept.take()
