"""The dropout places of a module tree: dropout modules, rates read in ``forward``, and PEFT's empty LoRA places.

No architecture is named here. A number counts if the bytecode of its module reads it (``self.attention_dropout``,
``self.config.attention_dropout``) anywhere but in ``__init__``. Only torch is imported.
"""

from __future__ import annotations

import dis
import functools
import inspect
import re
import types
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from torch import nn

PLACES = ("attention", "residual", "mlp", "lora")

_NUMBER = re.compile(r"dropout|pdrop")
_RESIDUAL = re.compile(r"res(id|idual)?_|^post_|_res|hidden|emb")
_ATTENTION = re.compile(r"att(n|ention)", re.IGNORECASE)
_MLP = re.compile(r"activation|mlp|ffn|feed_?forward|fc", re.IGNORECASE)
_MLP_OWNER = re.compile(r"mlp|ffn|feed_?forward", re.IGNORECASE)


@dataclass(frozen=True, eq=False)
class Site:
    """One dropout of a model. ``name`` is the path of its rate: a module, or a number of a module.

    ``kind``: "module" a dropout module ``owner.attribute``, "number" and "config" a rate read from ``owner`` or from
    ``owner.config``, "identity" the ``nn.Identity`` that PEFT creates for a LoRA dropout of rate 0. ``by_owner``: the
    owner's code applies the dropout itself if ``owner.training`` is set.
    """

    name: str
    place: str
    owner: nn.Module
    attribute: str
    kind: Literal["module", "number", "config", "identity"]
    by_owner: bool

    @property
    def backend(self) -> str | None:
        """The attention implementation (transformers) that applies this attention dropout, or None."""
        if self.place != "attention" or not self.by_owner:
            return None
        return getattr(getattr(self.owner, "config", None), "_attn_implementation", None)


def dropout_sites(model: nn.Module) -> list[Site]:
    """Every dropout of ``model``, in the order of ``named_modules``.

    LoRA layers that are merged or disabled, and those on embeddings and bare parameters, have no dropout: PEFT does not
    apply it there.
    """
    sites: list[Site] = []
    seen: set[int] = set()
    for path, module in model.named_modules():
        reads = own_reads(type(module))  # type: ignore[arg-type]  # mypy: "not hashable"
        sites += _numbers(path, module, reads)
        for key, child in module.named_children():
            if id(child) not in seen and isinstance(child, nn.modules.dropout._DropoutNd):
                seen.add(id(child))
                sites.append(_module_site(path, module, key, reads))
        lora = getattr(module, "lora_dropout", None)
        if isinstance(lora, nn.ModuleDict) and _applies_lora_dropout(module):
            seen.update(id(child) for child in lora.values())
            sites += _lora_sites(_join(path, "lora_dropout"), module, lora)
        elif isinstance(lora, nn.ModuleDict):
            seen.update(id(child) for child in lora.values())
    return sites


def _numbers(path: str, module: nn.Module, reads: frozenset[str]) -> Iterator[Site]:
    for attribute, value in vars(module).items():
        if _NUMBER.search(attribute) and _is_rate(value) and attribute in reads:
            place = _place(attribute, type(module).__name__, path)
            yield Site(_join(path, attribute), place, module, attribute, "number", by_owner=True)
    config: Any = vars(module).get("config")
    for attribute in sorted(name.removeprefix("config.") for name in reads if name.startswith("config.")):
        if _NUMBER.search(attribute) and _is_rate(getattr(config, attribute, None)):
            place = _place(attribute, type(module).__name__, path)
            yield Site(_join(path, f"config.{attribute}"), place, module, attribute, "config", by_owner=True)


def _module_site(path: str, owner: nn.Module, key: str, reads: frozenset[str]) -> Site:
    # `self.attn_dropout.p if self.training else 0.0`: the module only stores the rate (GPT-2, BERT)
    by_owner = f"{key}.p" in reads
    place = _place(key, type(owner).__name__, path if by_owner else "")
    return Site(_join(path, key), place, owner, key, "module", by_owner)


def _lora_sites(path: str, layer: nn.Module, lora: nn.ModuleDict) -> Iterator[Site]:
    for adapter, child in lora.items():
        if isinstance(child, nn.Identity | nn.modules.dropout._DropoutNd):
            kind: Literal["identity", "module"] = "identity" if isinstance(child, nn.Identity) else "module"
            yield Site(_join(path, adapter), "lora", lora, adapter, kind, by_owner=False)


def _applies_lora_dropout(layer: Any) -> bool:
    """PEFT's layers for embeddings and bare parameters have an ``nn.Identity`` that they never call."""
    on_parameter = hasattr(layer, "parameter_name")
    on_embedding = isinstance(getattr(layer, "base_layer", None), nn.Embedding)
    return not (on_parameter or on_embedding or getattr(layer, "merged", False) or _disabled(layer))


def _disabled(layer: Any) -> bool:
    return getattr(layer, "disable_adapters", False) is True


def _place(attribute: str, owner: str, path: str) -> str:
    """The place of a dropout, by its name, then by its owner's.

    Dropout of embeddings counts as residual, since embeddings start the residual stream.
    """
    if _RESIDUAL.search(attribute):
        return "residual"
    if _ATTENTION.search(attribute):
        return "attention"
    if _MLP.search(attribute) or _MLP_OWNER.search(owner):
        return "mlp"
    if path and _ATTENTION.search(owner) and not re.search("layer$", owner, re.IGNORECASE):
        return "attention"
    return "residual"


def _is_rate(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= 1


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


@functools.cache
def own_reads(cls: type) -> frozenset[str]:
    """The attributes that methods of ``cls`` read from ``self``: {"training", "dropout", "attn_dropout.p", …}.

    Dotted names count only if the same method also reads ``self.training``. ``__init__`` and the methods of
    ``nn.Module`` itself do not count.
    """
    names: set[str] = set()
    for base in cls.__mro__[: cls.__mro__.index(nn.Module)]:
        for name, member in vars(base).items():
            if isinstance(member, types.FunctionType) and name != "__init__":
                reads = set(_reads(inspect.unwrap(member).__code__))
                names.update(name for name in reads if "." not in name or "training" in reads)
    return frozenset(names)


def _reads(code: types.CodeType, receiver: str | None = None) -> Iterator[str]:
    """Attribute chains of up to two names that start at the first argument, including nested functions."""
    receiver = receiver or (code.co_varnames[0] if code.co_argcount else None)
    chain: list[str] | None = None
    for instruction in dis.get_instructions(code):
        if instruction.opname == "LOAD_ATTR" and chain is not None:
            chain.append(str(instruction.argval))
            yield ".".join(chain[:2])
        else:
            loaded = instruction.argval  # newer Pythons load two variables in one instruction
            loaded = loaded[-1] if isinstance(loaded, tuple) and loaded else loaded
            loads = instruction.opname.startswith(("LOAD_FAST", "LOAD_DEREF", "STORE_FAST_LOAD_FAST"))
            chain = [] if loads and receiver is not None and loaded == receiver else None
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _reads(constant, receiver)
