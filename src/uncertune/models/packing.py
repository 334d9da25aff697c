"""A check that packed documents do not attend to each other.

Packing and padding-free batches put several documents into one row and separate them by ``position_ids`` that restart
at 0. Architectures that ignore position ids let the later document attend to the earlier one.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import nn

from uncertune.errors import UserError
from uncertune.models.head import _backbone, _last_hidden, causal_lm, has_weights

TOKENS = 12
SLACK = 1e-3
"""Largest relative difference of the hidden states, in the Frobenius norm, that counts as rounding in float32."""


@torch.no_grad()
def verify_packing(model: nn.Module) -> None:
    """Check that the second of two packed documents has the hidden states that it has alone.

    Runs three forwards of 12 to 24 tokens without gradient in eval mode; each module's training flag is restored. A
    model whose weights are not on this rank is not checked.

    Raises UserError if the two differ by more than rounding, or if the model takes no ``position_ids``.
    """
    lm = causal_lm(model)
    if not has_weights(lm):
        return
    backbone = _backbone(lm)
    parameters = inspect.signature(backbone.forward).parameters
    takes = "position_ids" in parameters or any(one.kind is one.VAR_KEYWORD for one in parameters.values())
    training = [(module, module.training) for module in lm.modules()]
    lm.eval()
    try:
        difference = _difference(lm, backbone) if takes else float("inf")
    finally:
        for module, mode in training:
            module.training = mode
    eps = torch.finfo(next(lm.parameters()).dtype).eps
    if not difference <= max(SLACK, 8 * eps):
        raise UserError(
            f"packing / padding_free: {type(lm).__name__} lets a document attend to the one packed before it "
            f"(its hidden states change by {difference:.0%}): set packing and padding_free to false"
        )


def _difference(lm: Any, backbone: nn.Module) -> float:
    """The relative change of the second document's hidden states due to the document before it."""
    inputs = lm.get_input_embeddings()
    device, rows = inputs.weight.device, inputs.weight.shape[0]
    first = torch.arange(3, 3 + TOKENS, device=device) % rows
    second = torch.arange(5, 5 + 2 * TOKENS, 2, device=device) % rows
    places = torch.arange(TOKENS, device=device)
    alone = _hidden(backbone, second, places)
    packed = _hidden(backbone, torch.cat([first, second]), torch.cat([places, places]))[TOKENS:]
    return float((packed - alone).norm() / alone.norm())


def _hidden(backbone: nn.Module, ids: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    """(T, D) in float32 of one row without padding or attention mask, as from TRL's padding-free collator."""
    return _last_hidden(backbone(input_ids=ids[None], position_ids=places[None], use_cache=False))[0].float()
