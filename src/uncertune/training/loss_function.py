"""The losses for other trainers: a ``compute_loss_func`` for ``transformers.Trainer`` and its subclasses.

Shape legend: ``B`` rows, ``L`` positions, ``D`` hidden size, ``T`` response tokens of the batch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from uncertune.errors import UserError
from uncertune.fused import score_tokens, weighted_sweep
from uncertune.models import output_head, verify_head
from uncertune.models.head import gathered
from uncertune.objectives import IGNORED, OBJECTIVES, token_weighting
from uncertune.selection import METRICS, exact_count, scores_of, select

LossFunction = Callable[[Any, Tensor, Any], Tensor]


def loss_function(
    model: nn.Module,
    objective: str = "mle",
    *,
    selection_metric: str = "loss",
    selection_fraction: float = 0.25,
    weighting: str = "none",
    weighting_options: Mapping[str, Any] | None = None,
    label_smoothing: float = 0.0,
) -> LossFunction:
    """A function of a model's outputs, labels and ``num_items_in_batch``, for ``Trainer(compute_loss_func=…)``.

    The loss is ``Σ_t ℓ_t / num_items_in_batch`` (without that number, divided by the batch's response tokens), in nats,
    for ``objective`` ``mle`` or ``masked_mle``, which need no teacher, with a token weighting of
    ``uncertune.objectives.TOKEN_WEIGHTINGS`` (``dft``, ``eaft``, …). ``masked_mle`` selects within the micro-batch,
    since such a function sees no other tokens; ``UncertuneTrainer`` selects over the whole optimizer step.

    It reads ``outputs.hidden_states[-1]`` (B, L, D), so the model must return hidden states
    (``model.config.output_hidden_states = True``). It needs no logits: with ``logits_to_keep=1`` the model computes
    those of one position only (``without_logits`` wraps a collator to set it).

    Raises UserError for an objective, metric or weighting that cannot be used here, and for a model whose logits are
    not a linear head of its last hidden states.
    """
    usable = [name for name, one in OBJECTIVES.items() if not one.needs - {"selected"}]
    if objective not in usable:
        raise UserError(f"objective must be one of {', '.join(usable)} in a loss function; got {objective!r}")
    statistics = [name for name, one in METRICS.items() if one.needs_stats and one.extra is None]
    if selection_metric not in statistics:
        raise UserError(
            f"selection_metric must be one of {', '.join(statistics)} in a loss function; got {selection_metric!r}"
        )
    selects = "selected" in OBJECTIVES[objective].needs
    try:
        exact_count(selection_fraction, 0)
        weigh = token_weighting(weighting, weighting_options)
    except (TypeError, ValueError) as error:
        raise UserError(str(error)) from None
    verify_head(model)

    def loss(outputs: Any, labels: Tensor, num_items_in_batch: Any = None) -> Tensor:
        hidden_BLD = _last_hidden(outputs)
        if hidden_BLD.shape[:2] != labels.shape:
            raise UserError(
                f"the hidden states are of {tuple(hidden_BLD.shape[:2])} tokens, the labels {tuple(labels.shape)}: "
                "prompt-learning adapters and models that change the length are not supported"
            )
        predicts = torch.nn.functional.pad(labels[:, 1:] != IGNORED, (0, 1))
        index = predicts.flatten().nonzero()[:, 0]  # once for both, since the host waits for the number of tokens
        hidden_TD = hidden_BLD.flatten(0, 1).index_select(0, index.to(hidden_BLD.device))
        label_T = labels.flatten().index_select(0, index + 1)
        head = output_head(model)
        count = label_T.numel() if num_items_in_batch is None else num_items_in_batch
        with gathered(head.weight, head.bias):
            hidden_TD, label_T = hidden_TD.to(head.weight.device), label_T.to(head.weight.device)
            scored = None
            given: dict[str, Any] = {"token_weighting": weigh, "label_smoothing": label_smoothing or None}
            if selects:
                scored = score_tokens(hidden_TD, head, label_T, keep=selection_fraction > 0.5)
                given["selected"] = select(scores_of(selection_metric, scored.stats, None), selection_fraction)
            targets = OBJECTIVES[objective](label_T, **given)
            factor = 1 / max(float(count), 1.0)
            swept = weighted_sweep(hidden_TD, head, targets, scored=scored, factor=factor, everywhere=not selects)
            return swept.loss.sum() * factor

    return loss


def without_logits(collator: Callable[[list[Any]], dict[str, Any]]) -> Callable[[list[Any]], dict[str, Any]]:
    """The collator with ``logits_to_keep=1`` in its batches, so that the model computes logits of one position only."""

    def collate(examples: list[Any]) -> dict[str, Any]:
        return {**collator(examples), "logits_to_keep": 1}

    return collate


def _last_hidden(outputs: Any) -> Tensor:
    states = outputs.get("hidden_states") if isinstance(outputs, Mapping) else getattr(outputs, "hidden_states", None)
    if states is None:
        raise UserError(
            "the model returned no hidden states: set model.config.output_hidden_states = True before training"
        )
    return states[-1]
