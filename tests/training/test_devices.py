"""Two ranks train as one process does: the same masks, losses and gradients, with DDP and with FSDP2.

accelerate ignores its FSDP plugin on a CPU without a word, so here ``fully_shard`` is applied by hand, in the layout of
accelerate and in one with more shards, and the parameters are asserted to be shards.
"""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from helpers.harness import VOCABULARY, relative_difference, rows, run
from helpers.tiny import tiny_model
from helpers.two_processes import two_processes
from uncertune.errors import UserError
from uncertune.models import causal_lm
from uncertune.training import devices

LORA_HEAD = {"modules_to_save": ["lm_head"]}
DISTILL = {"objective": "masked_mle_distill"}

# name → (kind of model, LoRA options or False, fields of the configuration)
CASES: dict[str, tuple[str, Any, dict[str, Any]]] = {
    "full, tied head": ("llama", False, {"objective": "mle"}),
    "full, own head": ("phi", False, {"objective": "masked_mle"}),
    "full, a model as teacher": ("llama", False, {**DISTILL, "taught": "model"}),
    "adapter as teacher": ("llama", True, {**DISTILL, "taught": "adapter"}),
    "trained head": ("qwen2", LORA_HEAD, {**DISTILL, "taught": "adapter"}),
    "adapter as truncated teacher": (
        "llama",
        True,
        {"objective": "truncated_distill", "teacher_top_k": 5, "taught": "adapter"},
    ),
    "adapter as holdout reference": (
        "llama",
        True,
        {"objective": "masked_mle", "selection_metric": "rho", "rho_reference": "teacher", "taught": "adapter"},
    ),
    "gradient checkpointing": ("llama", True, {**DISTILL, "taught": "adapter", "gradient_checkpointing": True}),
    "accumulated, with dropout": ("llama", {"lora_dropout": 1e-9}, {**DISTILL, "taught": "adapter", "accumulate": 2}),
    "one rank selects nothing": (
        "llama",
        True,
        {"objective": "masked_mle", "selection_level": "document", "selection_fraction": 0.1},
    ),
    "packed without padding": ("llama", True, {**DISTILL, "taught": "model", "packing": True, "max_length": 30}),
}
WAYS = ("ddp", "fsdp2", "fsdp2 as accelerate")
HALF = ("full, tied head", "full, own head")


def one(name: str, folder: Path, ranks: int, prepare: Any = None) -> Any:
    """One optimizer step of eight rows (packed: of four), on this many ranks."""
    kind, lora, fields = CASES[name]
    fields = dict(fields)
    taught, accumulate = fields.pop("taught", None), fields.pop("accumulate", 1)
    packed = "packing" in fields
    return run(
        folder,
        data=rows(16 if packed else 8),
        kind=kind,
        lora=lora,
        teacher=teacher(taught, kind, folder.parent),
        per_device_train_batch_size=(4 if packed else 8) // ranks // accumulate,
        gradient_accumulation_steps=accumulate,
        prepare=prepare,
        **fields,
    )


def teacher(what: str | None, kind: str, folder: Path) -> Any:
    if what == "model":
        return tiny_model(kind, VOCABULARY, torch.float64, seed=5)
    return None if what is None else str(folder / f"adapter-{kind}")


def save_adapters(folder: Path) -> None:
    """For each kind, an adapter that stage 1 could have trained."""
    from peft import LoraConfig, get_peft_model

    for kind, more in (("llama", {}), ("qwen2", LORA_HEAD)):
        options = {"r": 4, "lora_alpha": 8, "target_modules": "all-linear", "task_type": "CAUSAL_LM", **more}
        torch.manual_seed(7)
        model = get_peft_model(tiny_model(kind, VOCABULARY), LoraConfig(init_lora_weights=False, **options))
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.requires_grad and "modules_to_save" in more:
                    parameter += 0.01
        model.save_pretrained(str(folder / f"adapter-{kind}"))


def shard_by_hand(trainer: Any, **policy: Any) -> None:
    """Each layer a shard of its own that stays gathered until its backward, and the rest, embedding and head, another;
    a reference model likewise."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh("cpu", (2,))
    for model in (trainer.model, getattr(trainer.references.teacher, "model", None)):
        if model is not None:
            for layer in causal_lm(model).base_model.layers:
                fully_shard(layer, mesh=mesh, reshard_after_forward=False, **policy)
            fully_shard(model, mesh=mesh, **policy)
    leave_alone(trainer)


def shard_in_half_precision(trainer: Any) -> None:
    """As a GPU trains: FSDP2 casts parameters, and the tensors among a forward's arguments, to bfloat16."""
    from torch.distributed.fsdp import MixedPrecisionPolicy

    shard_by_hand(trainer, mp_policy=MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32))


def shard_as_accelerate(trainer: Any) -> None:
    """accelerate's own function, with the plugin that its configuration file makes; head and norm are one shard."""
    from accelerate.utils import FullyShardedDataParallelPlugin, fsdp2_prepare_model

    plugin = FullyShardedDataParallelPlugin(
        fsdp_version=2, auto_wrap_policy="transformer_based_wrap", cpu_ram_efficient_loading=False
    )
    accelerator: Any = SimpleNamespace(
        state=SimpleNamespace(fsdp_plugin=plugin),
        torch_device_mesh=None,
        mixed_precision="no",
        is_main_process=False,
        device=torch.device("cpu"),
    )
    for model in (trainer.model, getattr(trainer.references.teacher, "model", None)):
        if model is not None:
            fsdp2_prepare_model(accelerator, model)
    leave_alone(trainer)


def leave_alone(trainer: Any) -> None:
    """Keep accelerate from wrapping what is sharded already."""
    from torch.distributed.fsdp import FSDPModule
    from torch.distributed.tensor import DTensor

    assert isinstance(trainer.model, FSDPModule)
    assert all(isinstance(parameter, DTensor) for parameter in trainer.model.parameters())
    trainer.accelerator.prepare_model = lambda model, **_: model


def on_ranks(folder: str) -> dict[tuple[str, str], Any]:
    """Every case in every way, on one rank."""
    prepares = {"ddp": None, "fsdp2": shard_by_hand, "fsdp2 as accelerate": shard_as_accelerate}
    out = {}
    for way, prepare in prepares.items():
        for name in CASES:
            step = one(name, Path(folder) / f"{way}, {name}", 2, prepare)
            kind = type(step.trainer.model_wrapped).__name__
            out[way, name] = (step.gradient, step.loss, step.masks, step.metrics[-1], kind)
    for name in HALF:
        step = one(name, Path(folder) / f"half, {name}", 2, shard_in_half_precision)
        out["half", name] = (step.gradient, step.loss)
    return out


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    save_adapters(folder)
    return folder, two_processes(on_ranks, str(folder), folder / "two")


@pytest.fixture(scope="module")
def alone(ranks):
    folder, _ = ranks
    found: dict[str, Any] = {}

    def step(name):
        if name not in found:
            found[name] = one(name, folder / f"alone, {name}", 1)
        return found[name]

    return step


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("way", WAYS)
def test_two_ranks_train_as_one_process(ranks, alone, way, name):
    _, (first, second) = ranks
    gradient, loss, masks, metrics, kind = first[way, name]
    whole = alone(name)
    assert kind == "DistributedDataParallel" if way == "ddp" else kind.startswith("FSDP")
    assert masks == whole.masks
    assert loss == pytest.approx(whole.loss, rel=1e-5)
    assert relative_difference(gradient, whole.gradient) < 1e-5
    assert relative_difference(second[way, name][0], gradient) < 1e-12
    for value in (
        "selected_fraction",
        "selection_threshold",
        "nll_selected",
        "nll_unselected",
        "loss_part_selected",
        "entropy",
    ):
        if value in whole.metrics[-1]:
            assert metrics[value] == pytest.approx(whole.metrics[-1][value], rel=1e-5), value


@pytest.mark.parametrize("name", HALF)
def test_half_precision_shards_train_to_rounding(ranks, alone, name):
    """FSDP2 copies dataclasses among a forward's arguments, which the loss must survive."""
    gradient, loss = ranks[1][0]["half", name]
    assert loss == pytest.approx(alone(name).loss, rel=2e-2)
    assert relative_difference(gradient, alone(name).gradient) < 0.1


def test_the_comparison_has_teeth(alone):
    assert float(sum(g.abs().sum() for g in alone("adapter as teacher").gradient.values())) > 0
    assert relative_difference(alone("full, tied head").gradient, alone("full, a model as teacher").gradient) > 0.01


def test_uneven_batches_are_refused():
    accelerator = SimpleNamespace(parallelism_config=None, num_processes=2, even_batches=False)
    with pytest.raises(UserError, match=r"even_batches=False .* leave it true"):
        devices.check(accelerator, tiny_model("llama"), average_tokens=True)


def test_training_on_a_gpu_is_without_cudnn_attention(tmp_path, monkeypatch):
    seen, device_of = [], devices.without_cudnn_attention
    monkeypatch.setattr(devices, "without_cudnn_attention", lambda _: device_of(torch.device("cuda")))

    def prepare(trainer):
        trainer.model.register_forward_hook(lambda *_: seen.append(torch.backends.cuda.cudnn_sdp_enabled()))

    run(tmp_path, data=rows(4), objective="mle", prepare=prepare)
    assert seen
    assert not any(seen)
    assert torch.backends.cuda.cudnn_sdp_enabled()


def test_cudnn_attention_comes_back_after_an_error_and_stays_on_a_cpu():
    def fail():
        with devices.without_cudnn_attention(torch.device("cuda")):
            assert not torch.backends.cuda.cudnn_sdp_enabled()
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert torch.backends.cuda.cudnn_sdp_enabled()
    with devices.without_cudnn_attention(torch.device("cpu")):
        assert torch.backends.cuda.cudnn_sdp_enabled()


@pytest.mark.gpu
@pytest.mark.parametrize("length", [64, 192, 320, 704])
def test_the_gradient_of_masked_attention_is_finite(length):
    size = 1, 1, length, 64
    query, key, value = (torch.randn(size, device="cuda", dtype=torch.bfloat16) for _ in range(3))
    query[..., 0], key[..., 0] = 1.0, -960.0  # every score is about -120
    for tensor in (query, key, value):
        tensor.requires_grad_()
    mask = torch.ones(length, length, dtype=torch.bool, device="cuda").tril()
    with devices.without_cudnn_attention(query.device):
        torch.nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=mask).sum().backward()
    assert all(bool(tensor.grad.isfinite().all()) for tensor in (query, key, value))
