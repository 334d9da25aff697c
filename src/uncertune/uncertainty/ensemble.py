"""Ensembles of dropout samples, LoRA adapters or checkpoints, with one interface (SPEC S17, B3).

for member in ensemble.members:
    with member.open() as (model, reseed):      # in eval mode, except for the member's dropout
        model(**inputs, head_fn=fn, response_mask=mask)
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass

from torch import Tensor, nn

from uncertune.errors import UserError
from uncertune.models import active_adapter, attached_head, output_head, unwrapped
from uncertune.uncertainty.dropout import evaluating, mc_dropout

Reseed = Callable[[int], None]
Opened = tuple[nn.Module, Reseed | None]


@dataclass(frozen=True)
class Member:
    """One model of an ensemble. ``open()`` is a context of the model, with its output head attached, and ``reseed``.

    A member with dropout has ``samples`` draws: ``reseed(seed)`` seeds it before each forward, and each row of a batch
    is a separate draw. Otherwise ``reseed`` is None and ``samples`` 1.
    """

    name: str
    open: Callable[[], AbstractContextManager[Opened]]
    samples: int = 1


@dataclass(frozen=True)
class Ensemble:
    """``shared_head``: every member has the same output head, so that one sweep of it serves all members."""

    members: tuple[Member, ...]
    shared_head: bool
    seed: int = 0

    @property
    def samples(self) -> int:
        return sum(member.samples for member in self.members)


def dropout_ensemble(
    model: nn.Module,
    samples: int = 100,
    rate: float = 0.1,
    seed: int = 0,
    places: str | Iterable[str] | None = None,
) -> Ensemble:
    """``samples`` draws of Monte-Carlo dropout; the other arguments are those of ``mc_dropout``, which checks them."""
    if samples < 1:
        raise UserError(f"samples: {samples} is not positive: give the number of dropout samples, for example 100")
    chosen = places if places is None or isinstance(places, str) else tuple(places)
    with mc_dropout(model, rate, seed, chosen):
        pass  # raises its errors now instead of at the first document

    @contextlib.contextmanager
    def opened() -> Iterator[Opened]:
        with attached_head(model), mc_dropout(model, rate, seed, chosen) as reseed:
            yield model, reseed

    return Ensemble((Member("dropout", opened, samples),), shared_head=True, seed=seed)


def adapter_ensemble(model: nn.Module, names: Iterable[str]) -> Ensemble:
    """One member for each adapter of a PEFT model, by name. Raises UserError for an unknown name."""
    has = list(getattr(unwrapped(model), "peft_config", ()))
    wanted = list(names)
    if not wanted:
        raise UserError(f"adapters: the list is empty: give names of {has}")
    for name in wanted:
        if name not in has:
            raise UserError(f"adapters: the model has no adapter {name!r}: give names of {has}")

    def opener(name: str) -> Callable[[], AbstractContextManager[Opened]]:
        @contextlib.contextmanager
        def opened() -> Iterator[Opened]:
            with active_adapter(model, name), attached_head(model), evaluating(model):
                yield model, None

        return opened

    return Ensemble(tuple(Member(name, opener(name)) for name in wanted), shared_head=_share_head(model, wanted))


def model_ensemble(models: Iterable[nn.Module | Callable[[], nn.Module]]) -> Ensemble:
    """One member for each model: a loaded model, or a function without arguments that loads it (a checkpoint).

    A function is called once for each group of documents that fits the memory budget, and its model is released after.
    """

    def opener(source: nn.Module | Callable[[], nn.Module]) -> Callable[[], AbstractContextManager[Opened]]:
        @contextlib.contextmanager
        def opened() -> Iterator[Opened]:
            model = source if isinstance(source, nn.Module) else source()
            with attached_head(model), evaluating(model):
                yield model, None

        return opened

    members = tuple(Member(str(index), opener(source)) for index, source in enumerate(models))
    if not members:
        raise UserError("models: the list is empty: give two models or more")
    return Ensemble(members, shared_head=False)


def _share_head(model: nn.Module, names: Iterable[str]) -> bool:
    """Whether the head is the same tensor under every adapter (not if ``modules_to_save`` trains it)."""
    heads = []  # all alive at once, so that no two have the same address by chance
    for name in names:
        with active_adapter(model, name):
            heads.append(output_head(model))
    first = heads[0]
    return all(_same(head.weight, first.weight) and _same(head.bias, first.bias) for head in heads)


def _same(left: Tensor | None, right: Tensor | None) -> bool:
    if left is None or right is None:
        return left is right
    return left.data_ptr() == right.data_ptr()
