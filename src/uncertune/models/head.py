"""The output head of a causal LM, and a forward that runs the backbone and passes its output to a function.

Shapes: B sequences, L columns, T response tokens (flattened), V vocabulary, D hidden.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import math
import sys
import types
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import nn

from uncertune.errors import UserError
from uncertune.objectives import Head


def causal_lm(model: nn.Module) -> Any:
    """The causal LM of transformers inside the wrappers of DDP, FSDP, DeepSpeed, ``torch.compile`` and PEFT."""
    from accelerate.utils import extract_model_from_parallel

    inner: Any = extract_model_from_parallel(model, keep_torch_compile=False)
    return inner.get_base_model() if hasattr(inner, "get_base_model") else inner


def output_head(model: nn.Module) -> Head:
    """The output head of any causal LM of transformers, wrapped by PEFT or not.

    If PEFT trains the head (``modules_to_save``, ``trainable_token_indices``), it is the active adapter's, or the
    original while adapters are disabled. Weights sharded by FSDP2 are gathered.

    Raises UserError for a model without an output head, a low-rank adapter on it, or quantised weights.
    """
    return _head_of(causal_lm(model))


def head_shape(model: nn.Module) -> tuple[int, int]:
    """(V, D) of the output head, also if DeepSpeed ZeRO-3 has partitioned its weight."""
    weight = output_head(model).weight
    return tuple(getattr(weight, "ds_shape", weight.shape))


def _head_of(lm: Any) -> Head:
    module = lm.get_output_embeddings()
    if module is None:
        raise UserError(f"model: {type(lm).__name__} has no output head: give a causal language model")
    weight, bias = _head_tensors(module)
    if not weight.is_floating_point():
        raise UserError(f"model: the output head of {type(lm).__name__} is quantised: leave lm_head in full precision")
    weight, bias = whole(weight), bias if bias is None else whole(bias)
    config = lm.config.get_text_config()
    rows = getattr(config, "unpadded_vocab_size", None)  # Inkling cuts off the padding rows
    if rows and rows < weight.shape[0]:
        weight, bias = weight[:rows], bias if bias is None else bias[:rows]
    return Head(weight=weight, bias=bias, softcap=_softcap(config), scale=_scale(config))


def whole(tensor: Any) -> torch.Tensor:
    """A DTensor (FSDP2) gathered from all ranks; any other tensor unchanged.

    Each rank has a different gradient for the gathered copy. The backward averages them over ranks, as FSDP does.
    """
    if not hasattr(tensor, "full_tensor"):
        return tensor
    from torch.distributed.tensor import Partial

    return tensor.full_tensor(grad_placements=[Partial("avg")] * tensor.device_mesh.ndim)


def _head_tensors(module: Any) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Weight and bias that a call of ``module`` would use now, including PEFT's replacements."""
    if hasattr(module, "base_layer") and hasattr(module, "adapter_layer_names"):  # peft's BaseTunerLayer
        raise UserError(
            "target_modules: an adapter on the output head makes it more than one matrix; "
            "remove `lm_head` from target_modules (to train the head, put it into modules_to_save)"
        )
    if hasattr(module, "original_module"):  # peft's AuxiliaryTrainingWrapper
        active = module.active_adapters
        original = module.original_module
        if module.disable_adapters or not active or any(name not in module._adapters for name in active):
            module = original
        elif hasattr(module, "modules_to_save"):
            module = module.modules_to_save[active[0]]
        else:
            replaced = module.token_adapter
            merged = original.weight if replaced.merged else replaced.get_merged_weights(active)
            return merged, getattr(original, "bias", None)
    return module.weight, getattr(module, "bias", None)


def _softcap(config: Any) -> float | None:
    """Gemma 2 and later, NanoChat, …: ``final_logit_softcapping``; RecurrentGemma and xLSTM have their own names."""
    for field in ("final_logit_softcapping", "logits_soft_cap", "output_logit_soft_cap"):
        if value := getattr(config, field, None):
            return float(value)
    return None


def _scale(config: Any) -> float:
    """The factor of the logits before the soft-cap. The names are those of transformers."""
    kind = getattr(config, "model_type", "")
    if kind == "mpt":  # reads `logit_scale` from its configuration and does not use it
        return 1.0
    for field in ("logit_scale", "output_multiplier", "lm_head_multiplier"):  # Cohere; Muse; Falcon-H1
        if (value := getattr(config, field, None)) is not None:
            return float(value)
    for field in ("logits_scaling", "logits_mup_width_multiplier"):  # Granite, MiniCPM3; Inkling
        if (value := getattr(config, field, None)) is not None:
            return float(value) if kind == "hyperclovax" else 1.0 / float(value)
    return 1.0


def verify_head(model: nn.Module, *, tokens: int = 4) -> None:
    """Check on ``tokens`` token ids that ``output_head`` gives the model's own logits.

    Runs two forwards without gradient in eval mode; each module's training flag is restored, and no random number is
    drawn. Raises UserError if they differ by more than rounding: such a model cannot be trained through its head. A
    model whose weights are not on this rank is not checked.
    """
    lm = causal_lm(model)
    if not has_weights(lm):
        return
    inputs = lm.get_input_embeddings()
    rows = torch.arange(1, tokens + 1, device=inputs.weight.device) % inputs.weight.shape[0]
    ids = {"input_ids": rows[None], "attention_mask": torch.ones_like(rows)[None]}
    training = [(module, module.training) for module in lm.modules()]
    lm.eval()
    try:
        with torch.no_grad():
            own = lm(**ids, use_cache=False).logits
            hidden = _last_hidden(_backbone(lm)(**ids, use_cache=False))
            head = _head_of(lm)
            fits = hidden.shape[-1] == head.weight.shape[-1]
            ours = head.logits(hidden.to(head.weight.device)).to(own.device) if fits else None
    finally:
        for module, mode in training:
            module.training = mode
    if not own.isfinite().all():
        raise UserError(f"model: {type(lm).__name__} gives non-finite logits: its weights are damaged")
    # Rounding after matmul, scale, division, tanh and product: at most 5 · eps/2 of the largest logit.
    slack = max(1e-5, 4 * torch.finfo(head.weight.dtype).eps) * own.abs().max().item()
    if ours is None or own.shape != ours.shape or (own.float() - ours.float()).abs().max().item() > slack:
        raise UserError(
            f"model: the logits of {type(lm).__name__} are not a linear head, soft-cap and scale of its last hidden "
            "states: not supported"
        )


def attach_head(model: nn.Module) -> None:
    """Let ``model`` run without its head: ``model(**inputs, head_fn=fn, response_mask=mask)``.

    ``mask`` is (B, L-1) bool: column t says whether the token in column t+1 counts. The call runs the backbone and
    returns ``fn(hidden, head, aux_loss)`` with::

        hidden     (T, D)  ``last_hidden_state[:, :-1][mask]``, on the head's device
        head       ``output_head(model)`` at the time of the call
        aux_loss   the load-balancing loss of a mixture of experts whose configuration asks for router logits, not yet
                   multiplied by ``router_aux_loss_coef``; None otherwise

    ``response_index`` (T,) int64, if known, are the places of ``mask`` in the flattened (B, L): computing them from the
    mask waits for the device. ``fn`` runs inside the forward of the wrapped model, so that the hooks of DDP, FSDP and
    DeepSpeed see one ordinary call. With ``kept``, the hidden states and auxiliary loss of an earlier call, the
    backbone does not run and ``fn`` gets these. ``labels`` and other arguments of the head are dropped. Without
    ``head_fn`` the original forward runs, with its signature. Attaching twice has no effect.
    """
    lm = causal_lm(model)
    if "_uncertune_forward" in vars(lm) and "forward" in vars(lm):
        return
    # An attribute instead of a variable of the closure, so that a deep copy of the model calls its own forward.
    lm._uncertune_forward = lm.forward

    @functools.wraps(type(lm).forward)  # `generate` and `Trainer` read the signature
    def forward(
        self: Any,
        *args: Any,
        head_fn: Callable | None = None,
        response_mask: torch.Tensor | None = None,
        response_index: torch.Tensor | None = None,
        kept: tuple[torch.Tensor, torch.Tensor | None] | None = None,
        **kwargs: Any,
    ) -> Any:
        if head_fn is None:
            return self._uncertune_forward(*args, **kwargs)
        if kept is not None:
            return _apply_head(self, head_fn, *kept)
        if response_mask is None:
            raise ValueError("head_fn needs response_mask, (B, L-1) bool")
        return _forward_backbone(self, head_fn, response_mask, response_index, args, kwargs)

    lm.forward = types.MethodType(forward, lm)


@contextlib.contextmanager
def attached_head(model: nn.Module) -> Iterator[None]:
    """``attach_head`` inside the block; restores the forward on exit."""
    state = vars(causal_lm(model))
    before = {name: state[name] for name in ("forward", "_uncertune_forward") if name in state}
    attach_head(model)
    try:
        yield
    finally:
        for name in ("forward", "_uncertune_forward"):
            state.pop(name, None)
        state.update(before)


_HEAD_ARGUMENTS = ("labels", "shift_labels", "num_items_in_batch", "logits_to_keep", "fused_lm_head")


def _forward_backbone(
    lm: Any,
    head_fn: Callable,
    response_mask: torch.Tensor,
    index: torch.Tensor | None,
    args: tuple,
    kwargs: dict,
) -> Any:
    kwargs = {name: value for name, value in kwargs.items() if name not in _HEAD_ARGUMENTS}
    kwargs["use_cache"] = False
    if getattr(lm.config.get_text_config(), "output_router_logits", False):
        kwargs.setdefault("output_router_logits", True)
    # Looked up on each call, since PEFT and FSDP replace modules after the head is attached.
    outputs = _backbone(lm)(*args, **kwargs)
    hidden_BLD = _last_hidden(outputs)
    batch, length, width = hidden_BLD.shape
    if response_mask.shape != (batch, length - 1):
        raise ValueError(f"response_mask must be {(batch, length - 1)}, got {tuple(response_mask.shape)}")
    if index is None:
        index = nn.functional.pad(response_mask, (0, 1), value=False).flatten().nonzero().squeeze(1)
    # index_select, whose backward adds rows in place; a boolean index sorts them first
    hidden_TD = hidden_BLD.reshape(-1, width).index_select(0, index.to(hidden_BLD.device))
    return _apply_head(lm, head_fn, hidden_TD, _aux_loss(lm, outputs, args, kwargs))


def _apply_head(lm: Any, head_fn: Callable, hidden_TD: torch.Tensor, aux_loss: torch.Tensor | None) -> Any:
    head = _head_of(lm)
    with gathered(head.weight, head.bias):
        return head_fn(hidden_TD.to(head.weight.device), head, aux_loss)


def _backbone(lm: Any) -> nn.Module:
    # `base_model` is `getattr(lm, lm.base_model_prefix)`, or the model itself if it has no such attribute (Llama 4)
    for backbone in (lm.base_model, getattr(lm, "model", None)):
        if backbone is not None and backbone is not lm:
            return backbone
    raise UserError(f"model: {type(lm).__name__} does not name its backbone: not supported")


def _last_hidden(outputs: Any) -> torch.Tensor:
    hidden = getattr(outputs, "last_hidden_state", None)
    return outputs[0] if hidden is None else hidden


def _aux_loss(lm: Any, outputs: Any, args: tuple, kwargs: dict) -> torch.Tensor | None:
    if not kwargs.get("output_router_logits") or getattr(outputs, "router_logits", None) is None:
        return None
    from transformers.models.mixtral import modeling_mixtral

    # Families with other routers define their function in the module of the class.
    balance = getattr(sys.modules[type(lm).__module__], "load_balancing_loss_func", None)
    balance = balance or modeling_mixtral.load_balancing_loss_func
    config = lm.config.get_text_config()
    experts = getattr(lm, "num_experts", None) or config.num_experts
    chosen = getattr(lm, "num_experts_per_tok", None) or config.num_experts_per_tok
    keys = {"num_keys": math.isqrt(experts)} if "num_keys" in inspect.signature(balance).parameters else {}  # Doge
    # Rows packed without padding have no mask: every token counts.
    mask = kwargs.get("attention_mask", args[1] if len(args) > 1 else None)
    loss = balance(outputs.router_logits, num_experts=experts, top_k=chosen, attention_mask=mask, **keys)
    return loss if isinstance(loss, torch.Tensor) else None


def has_weights(model: nn.Module) -> bool:
    """False if this rank has no weights yet (``fsdp_cpu_ram_efficient_loading``: only the first rank of a machine reads
    the model), or if DeepSpeed ZeRO-3 has partitioned them."""
    return not any(parameter.is_meta or hasattr(parameter, "ds_id") for parameter in model.parameters())


def gathered(*parameters: Any) -> AbstractContextManager:
    """Gather weights that DeepSpeed ZeRO-3 has partitioned: reading a weight does not trigger its hooks."""
    if not hasattr(parameters[0], "ds_id"):
        return nullcontext()
    from trl.trainer.utils import maybe_gather_lm_head_ctx

    return maybe_gather_lm_head_ctx(*parameters)
