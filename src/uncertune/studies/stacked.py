"""Many small models of one shape as one batch: ``torch.func`` runs them, one backward trains them.

The loss of a step is the sum of the models' mean losses. Each model enters only its own term, so the gradients are
those of separate training. Losses are those of ``objectives`` on flattened logits (all models' tokens in one row).

Shape legend: ``M`` models; every parameter is stacked along its first dimension.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn


class Stacked:
    """``M`` models, built by ``build(seed)`` for each seed; ``base`` has the modules that run them."""

    def __init__(self, build: Callable[[], nn.Module], seeds: Sequence[int]) -> None:
        models = []
        for seed in seeds:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                models.append(build())
        stacked, _ = torch.func.stack_module_state(models)
        self.base = models[0]
        self.parameters = {name: value.detach().requires_grad_() for name, value in stacked.items()}

    def __call__(self, inputs: Tensor, parameters: dict[str, Tensor] | None = None) -> Tensor:
        """``inputs`` (M, ...) of each model → its outputs (M, ...). Dropout draws separately for each model."""

        def one(state: dict[str, Tensor], given: Tensor) -> Tensor:
            return torch.func.functional_call(self.base, state, (given,))

        run = torch.func.vmap(one, randomness="different")
        out: Tensor = run(self.parameters if parameters is None else parameters, inputs)
        return out

    def copy(self) -> Stacked:
        """A copy of the models, to be trained separately."""
        out = copy.copy(self)
        out.parameters = {name: value.detach().clone().requires_grad_() for name, value in self.parameters.items()}
        return out

    def repeated(self, times: int) -> Stacked:
        """Each model ``times`` times: model m becomes m · times … m · times + times − 1."""
        out = copy.copy(self)
        out.parameters = {
            name: value.detach().repeat_interleave(times, 0).requires_grad_() for name, value in self.parameters.items()
        }
        return out
