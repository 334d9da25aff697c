"""Monte-Carlo dropout on any module tree: a seeded context in which only the chosen dropouts are active.

    with mc_dropout(model, rate=0.1, seed=0):
        model(input_ids)                            # one sample

Gal and Ghahramani 2016, "Dropout as a Bayesian approximation"; SPEC S17. Only torch is imported.
"""

from __future__ import annotations

import contextlib
import copy
import fnmatch
import hashlib
import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from uncertune.errors import UserError
from uncertune.uncertainty.sites import PLACES, Site, dropout_sites

# transformers' attention functions and a dropout rate: `eager`, `sdpa` and FlashAttention 2 apply it; `flex_attention`
# raises; FlashAttention 3 and 4 silently ignore it; others are unknown.
_BACKENDS = (None, "eager", "sdpa", "flash_attention_2", "kernels-community/flash-attn2")

# Other rates of a module that act only in training mode: skipped layers, router noise.
_OTHER_NOISE = re.compile(r"drop|jitter")


@contextlib.contextmanager
def mc_dropout(
    model: nn.Module, rate: float = 0.1, seed: int = 0, places: str | Iterable[str] | None = None
) -> Iterator[Callable[[int], None]]:
    """Dropout of ``rate`` at ``places``, everything else in eval mode; the random numbers start at ``seed``.

    ``places``: any of "attention", "residual" (with embeddings), "mlp" and "lora", or glob patterns of names from
    ``dropout_places``; None means every place of the model. A module's configured rate is ignored. Rate 0 is the plain
    forward. The context yields ``reseed(seed)``, which restarts the random numbers.

    On exit, also by an exception, everything is restored: training flags, rates, replaced modules, and the state of the
    global random generators of the CPU and of the model's devices. The same seed on the same device, with inputs of the
    same shape, gives the same masks. Not thread-safe, since it uses torch's global generators.

    Raises UserError for a rate outside [0, 1), for a place that the model does not have (with those that it has), and
    for an attention implementation without dropout.
    """
    if not 0 <= rate < 1:
        raise UserError(f"rate: {rate} is not in [0, 1): give the share of activations to drop, for example 0.1")
    chosen = choose_sites(model, places)
    if rate > 0:
        _check_backends(chosen)
    with evaluating(model), _own_generators(model) as reseed, contextlib.ExitStack() as undo:
        if rate > 0:
            _activate(model, chosen, rate, undo)
        reseed(seed)
        yield reseed


def dropout_places(model: nn.Module) -> dict[str, list[str]]:
    """The names of the model's dropouts by place; places without dropout are missing."""
    found: dict[str, list[str]] = {}
    for site in dropout_sites(model):
        found.setdefault(site.place, []).append(site.name)
    return {place: found[place] for place in PLACES if place in found}


def sample_seed(seed: int, document: Tensor | bytes | str | int, sample: int) -> int:
    """A seed in [0, 2⁶³), a hash (BLAKE2b) of the arguments alone.

    ``document`` is the document's token ids (an integer tensor of any shape and device; the type of its integers does
    not matter), its text or an index.
    """
    if isinstance(document, Tensor):
        kind, content = "ids", document.detach().reshape(-1).to("cpu", torch.int64).numpy().tobytes()
    elif isinstance(document, bytes):
        kind, content = "bytes", document
    else:
        kind, content = type(document).__name__, str(document).encode()
    digest = hashlib.blake2b(f"{seed}:{sample}:{kind}:".encode() + content, digest_size=8)
    return int.from_bytes(digest.digest(), "little") >> 1


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Eval mode module by module; each module's flag is restored on exit. No method of the model is called."""
    training = [(module, module.training) for module in model.modules()]
    for module, _ in training:
        module.training = False
    try:
        yield
    finally:
        for module, mode in training:
            module.training = mode


def choose_sites(model: nn.Module, places: str | Iterable[str] | None) -> list[Site]:
    """The dropouts at ``places``, as in ``mc_dropout``. Raises UserError for an entry without a match."""
    sites = dropout_sites(model)
    if places is None:
        wanted: list[str] = []
    else:
        wanted = [places] if isinstance(places, str) else list(places)
        if not wanted:
            raise UserError(f"places: the list is empty: give None for every place, or {_has(sites)}")
    if not sites:
        raise UserError(
            f"model: {type(model).__name__} has no dropout that could be activated: give a model with dropout "
            "places, or one with LoRA adapters"
        )
    for place in wanted:
        if not any(_matches(site, place) for site in sites):
            raise UserError(f"places: {type(model).__name__} has no dropout at {place!r}: give {_has(sites)}")
    return [site for site in sites if places is None or any(_matches(site, place) for place in wanted)]


def _matches(site: Site, place: str) -> bool:
    if place in PLACES:
        return site.place == place
    holder = site.name.rpartition(".")[0] if site.by_owner else site.name
    return fnmatch.fnmatchcase(site.name, place) or fnmatch.fnmatchcase(holder, place)


def _has(sites: list[Site]) -> str:
    """One line: the places and one pattern of names for each."""
    patterns: dict[str, dict[str, None]] = {}
    for site in sites:
        patterns.setdefault(site.place, {})[re.sub(r"\.\d+\.", ".*.", site.name)] = None
    parts = []
    for place in PLACES:
        if place in patterns:
            names = list(patterns[place])
            shown = ", ".join(names[:4]) + (", …" if len(names) > 4 else "")
            parts.append(f"{place!r} ({shown})")
    return " or ".join(parts)


def _check_backends(chosen: list[Site]) -> None:
    for site in chosen:
        if site.backend not in _BACKENDS:
            raise UserError(
                f"attn_implementation: {site.backend!r} has no attention dropout: load the model with 'sdpa' or "
                "'eager', or leave 'attention' out of places"
            )


def _activate(model: nn.Module, chosen: list[Site], rate: float, undo: contextlib.ExitStack) -> None:
    active = {site.name for site in chosen}
    owners = {id(site.owner): site.owner for site in chosen if site.by_owner}
    for owner in owners.values():
        _only_training(owner, undo)
    for site in dropout_sites(model):
        if site.name in active or id(site.owner) in owners:
            _set_rate(site, rate if site.name in active else 0.0, undo)
    for module in model.modules():
        # torch's own layer has a fused path in eval mode, and PEFT's variants (DoRA, …) skip dropout there.
        lora = getattr(module, "lora_dropout", None)
        fused = isinstance(module, nn.TransformerEncoderLayer)
        if fused or any(site.owner is lora for site in chosen if lora is not None):
            _set(module, "training", True, undo)


def _set_rate(site: Site, rate: float, undo: contextlib.ExitStack) -> None:
    owner: Any = site.owner
    if site.kind == "number":
        _set(owner, site.attribute, rate, undo)
    elif site.kind == "config":  # a copy for this module alone, since modules share the configuration
        config = copy.copy(owner.config)
        setattr(config, site.attribute, rate)
        _set(owner, "config", config, undo)
    elif site.kind == "identity":
        undo.callback(owner._modules.__setitem__, site.attribute, owner._modules[site.attribute])
        owner._modules[site.attribute] = nn.Dropout(rate)
    else:
        dropout = owner._modules[site.attribute]
        _set(dropout, "p", rate, undo)
        _set(dropout, "training", rate > 0, undo)


def _only_training(owner: Any, undo: contextlib.ExitStack) -> None:
    """Set ``owner.training``, and disable its other effects: gradient checkpointing, layer drop, router noise."""
    _set(owner, "training", True, undo)
    if getattr(owner, "gradient_checkpointing", False):
        _set(owner, "gradient_checkpointing", False, undo)
    for attribute, value in list(vars(owner).items()):
        if _OTHER_NOISE.search(attribute) and type(value) in (int, float) and value:
            _set(owner, attribute, 0.0, undo)


def _set(holder: Any, attribute: str, value: Any, undo: contextlib.ExitStack) -> None:
    """Set ``holder.attribute`` until ``undo``, bypassing ``__setattr__``, which may be overridden."""
    state = vars(holder)
    if attribute in state:
        undo.callback(state.__setitem__, attribute, state[attribute])
    else:
        undo.callback(state.pop, attribute, None)
    state[attribute] = value


@contextlib.contextmanager
def _own_generators(model: nn.Module) -> Iterator[Callable[[int], None]]:
    """Restore the global generators of the CPU and of the model's devices on exit; yields ``reseed``.

    ``torch.manual_seed`` would also change devices that the model is not on.
    """
    tensors = (*model.parameters(), *model.buffers())
    devices = dict.fromkeys(tensor.device for tensor in tensors if tensor.device.type not in ("cpu", "meta"))
    generators = [torch.default_generator, *(_generator(device) for device in devices)]
    states = [generator.get_state() for generator in generators]

    def reseed(seed: int) -> None:
        for index, generator in enumerate(generators):
            # With layers on several devices, each draws separate masks.
            generator.manual_seed(seed if index < 2 else sample_seed(seed, "device", index))

    try:
        yield reseed
    finally:
        for generator, state in zip(generators, states, strict=True):
            generator.set_state(state)


def _generator(device: torch.device) -> torch.Generator:
    if device.type == "mps":
        return torch.mps._get_default_mps_generator()
    index = device.index if device.index is not None else 0
    return getattr(torch, device.type).default_generators[index]
