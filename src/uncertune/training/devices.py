"""Several devices with accelerate: refused settings, placement of reference models, exchange between ranks; and the
attention kernels of a GPU."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from uncertune.errors import UserError
from uncertune.models import causal_lm


@contextlib.contextmanager
def without_cudnn_attention(device: torch.device) -> Iterator[None]:
    """On a GPU, keep ``scaled_dot_product_attention`` from cuDNN; it then takes its flash or memory-efficient kernels.

    cuDNN's backward gives NaN where a mask is given, the padded length is 64 more than a multiple of 128, and a query's
    scores are all far below zero, as in Qwen2.5 (pytorch issue 196678; the default of torch 2.11 on an H100).
    """
    cudnn = torch.backends.cuda
    if device.type != "cuda" or not cudnn.cudnn_sdp_enabled():
        yield
        return
    cudnn.enable_cudnn_sdp(False)
    try:
        yield
    finally:
        cudnn.enable_cudnn_sdp(True)


def check(accelerator: Any, model: nn.Module, *, average_tokens: bool) -> None:
    """Raise UserError for settings of accelerate that this trainer does not support."""
    parallel = accelerator.parallelism_config
    for size in ("cp_size", "sp_size", "tp_size"):
        if parallel is not None and (getattr(parallel, size, 1) or 1) > 1:
            raise UserError(f"{size} > 1 is not supported: use data parallelism (DDP, FSDP2 or DeepSpeed)")
    if accelerator.num_processes > 1 and not average_tokens:
        raise UserError(
            "average_tokens_across_devices=False is not supported: the loss is divided by the tokens of all ranks"
        )
    if accelerator.num_processes > 1 and not accelerator.even_batches:
        raise UserError(
            "accelerator_config: even_batches=False gives the ranks unequal numbers of batches, which is a deadlock: "
            "leave it true; the rows that fill the last batch do not count"
        )
    if accelerator.mixed_precision == "fp16" and accelerator.device.type == "cpu":
        raise UserError("fp16=True has no effect on a CPU: use bf16, or neither for float32")
    deepspeed = getattr(accelerator.state, "deepspeed_plugin", None)
    if deepspeed is not None and deepspeed.zero_stage == 3:
        _check_zero3(causal_lm(model))
    fsdp = getattr(accelerator.state, "fsdp_plugin", None)
    if fsdp is None:
        return
    if fsdp.fsdp_version != 2:
        raise UserError(f"fsdp_version: {fsdp.fsdp_version} is not supported: set fsdp_version: 2")
    if "FULL_STATE_DICT" not in str(fsdp.state_dict_type):
        raise UserError(
            "fsdp_state_dict_type: SHARDED_STATE_DICT leaves no model that others can load: set it to FULL_STATE_DICT"
        )


def check_batches(args: Any, rows: Any, whole: int) -> None:
    """Raise UserError if the prepared ``rows`` give no batch, or cannot be sampled with these settings.

    ``whole`` is the number of rows of a batch over all ranks.
    """
    if not hasattr(rows, "__len__"):
        if args.train_sampling_strategy != "random":
            raise UserError(
                f"train_sampling_strategy={args.train_sampling_strategy!r} has no effect on a stream, whose order is "
                "fixed: remove it, or set dataset_streaming to false"
            )
    elif args.dataloader_drop_last and len(rows) < whole:
        raise UserError(
            f"dataloader_drop_last=True leaves nothing to train on: {len(rows)} rows are less than a batch of {whole} "
            "over all ranks: set it to false, or per_device_train_batch_size lower"
        )


def _check_zero3(lm: Any) -> None:
    """Refuse heads that ZeRO-3 cannot train: the head is read, not called, so DeepSpeed does not see its gradient."""
    head = lm.get_output_embeddings()
    if head is not None and any(parameter.requires_grad for parameter in head.parameters()):
        raise UserError(
            "zero_stage: 3 with a trained output head (full fine-tuning, or lm_head or a tied embedding in "
            "modules_to_save) is not supported: use LoRA, zero_stage: 2, or FSDP2"
        )
    if getattr(lm.config.get_text_config(), "unpadded_vocab_size", None):
        raise UserError(
            f"zero_stage: 3 with {type(lm).__name__}, whose output head has padding rows, is not supported: use "
            "zero_stage: 2, or FSDP2"
        )


def prepare_reference(model: nn.Module, accelerator: Any) -> nn.Module:
    """A frozen model on this rank's device, placed like the student: whole (DDP, ZeRO-2) or sharded."""
    if accelerator.is_fsdp2:
        from accelerate.utils import fsdp2_prepare_model

        plugin = accelerator.state.fsdp_plugin
        asked = plugin.auto_wrap_policy, plugin.transformer_cls_names_to_wrap
        try:
            return fsdp2_prepare_model(accelerator, model)
        finally:  # accelerate has stored the reference's layers there, and the student's may differ
            plugin.auto_wrap_policy, plugin.transformer_cls_names_to_wrap = asked
    if getattr(accelerator.state, "deepspeed_plugin", None) is not None:
        from trl.models.utils import prepare_deepspeed

        return prepare_deepspeed(model, accelerator)
    return accelerator.prepare_model(model, evaluation_mode=True)


def as_main_process(function: Callable[[], Any]) -> Any:
    """The result or the exception of the first rank's call, on every rank.

    Under DeepSpeed ZeRO-3, where each rank has a part of the weights, all ranks call it together.
    """
    from transformers.integrations import is_deepspeed_zero3_enabled

    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return function()
    if is_deepspeed_zero3_enabled():
        return function()
    outcome: list[Any] = [None, None]
    if dist.get_rank() == 0:
        try:
            outcome[0] = function()
        except Exception as error:  # otherwise the others would wait forever
            outcome[1] = error
    dist.broadcast_object_list(outcome, src=0)
    if outcome[1] is not None:
        raise outcome[1]
    return outcome[0]


def all_ranks(mine: Any) -> list[Any]:
    """Every rank's object, in rank order."""
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return [mine]
    gathered: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(gathered, mine)
    return gathered


def sum_over_ranks(values: dict[str, float]) -> dict[str, float]:
    """Each value summed over all ranks."""
    ranks = all_ranks(values)
    return {name: sum(rank[name] for rank in ranks) for name in values}


def radix_exchange() -> dict[str, Any]:
    """The keywords of ``uncertune.selection.radix.top_masks`` for the ranks of this process group."""
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return {}
    on_device = dist.get_backend() not in ("gloo", "mpi")

    def sum_counts(counts: Tensor) -> Tensor:
        counts = counts.to(torch.accelerator.current_accelerator()) if on_device else counts.clone()
        dist.all_reduce(counts)
        return counts.cpu()

    return {"rank": dist.get_rank(), "sum_over_ranks": sum_counts, "gather": all_ranks}
