"""Many devices, as accelerate drives them: what is refused, how a reference model is laid out, what one rank knows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch.distributed as dist
from torch import nn

from uncertune.errors import UserError


def check(accelerator: Any, *, average_tokens: bool) -> None:
    """Raise UserError for what an accelerate file can ask for and this trainer does not do."""
    parallel = accelerator.parallelism_config
    for size in ("cp_size", "sp_size", "tp_size"):
        if parallel is not None and (getattr(parallel, size, 1) or 1) > 1:
            raise UserError(f"{size} > 1 is not supported: use data parallelism (DDP, FSDP2 or DeepSpeed)")
    if accelerator.num_processes > 1 and not average_tokens:
        raise UserError(
            "average_tokens_across_devices=False is not supported: the loss is divided by the tokens of all ranks"
        )
    fsdp = getattr(accelerator.state, "fsdp_plugin", None)
    if fsdp is None:
        return
    if fsdp.fsdp_version != 2:
        raise UserError(f"fsdp_version: {fsdp.fsdp_version} is not supported: set fsdp_version: 2")
    if "FULL_STATE_DICT" not in str(fsdp.state_dict_type):
        raise UserError(
            "fsdp_state_dict_type: SHARDED_STATE_DICT leaves no model that others can load: set it to FULL_STATE_DICT"
        )


def prepare_reference(model: nn.Module, accelerator: Any) -> nn.Module:
    """A frozen model on this rank's device, laid out as the student will be: whole (DDP, ZeRO-2) or in shards."""
    if accelerator.is_fsdp2:
        from accelerate.utils import fsdp2_prepare_model

        plugin = accelerator.state.fsdp_plugin
        asked = plugin.auto_wrap_policy, plugin.transformer_cls_names_to_wrap
        try:
            return fsdp2_prepare_model(accelerator, model)
        finally:  # it has written the reference's layers there, and the student's may be others
            plugin.auto_wrap_policy, plugin.transformer_cls_names_to_wrap = asked
    if getattr(accelerator.state, "deepspeed_plugin", None) is not None:
        from trl.models.utils import prepare_deepspeed

        return prepare_deepspeed(model, accelerator)
    return accelerator.prepare_model(model, evaluation_mode=True)


def has_weights(model: nn.Module) -> bool:
    """False on the ranks that FSDP fills later (``fsdp_cpu_ram_efficient_loading``): only the first of a machine reads
    the model, the others hold shapes."""
    return not any(parameter.is_meta for parameter in model.parameters())


def as_main_process(function: Callable[[], Any]) -> Any:
    """What the first rank's call returns, on every rank."""
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return function()
    value = [function() if dist.get_rank() == 0 else None]
    dist.broadcast_object_list(value, src=0)
    return value[0]
