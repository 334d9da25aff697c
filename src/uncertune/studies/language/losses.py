"""The loss of an arm on one batch of all models, with the package's objectives and selection."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from uncertune.objectives import OBJECTIVES, Head, anchored, token_weighting, weighted_nll
from uncertune.selection import METRICS, random_scores, scores_of, select
from uncertune.studies.language.arms import Arm
from uncertune.studies.language.grammar import LENGTH, TASKS, VOCABULARY, WORDS, divergence, entropy
from uncertune.studies.language.world import World
from uncertune.studies.stacked import Stacked
from uncertune.uncertainty import mc_dropout
from uncertune.uncertainty.bald import Decomposition, Logits, StreamedSums

DROPOUT = 0.1
BALD_SAMPLES = 10
_LEAST_VARIANCE = 0.05


def token_losses(logits: Tensor, labels: Tensor) -> Tensor:
    """(M, B, T, V) logits and (M, B, T) labels → (M, B, T) cross-entropies, by ``weighted_nll``."""
    targets = OBJECTIVES["mle"](labels.flatten())
    return weighted_nll(logits.flatten(0, 2), targets).view(labels.shape)


def objective_loss(world: World, models: Stacked, arm: Arm, texts: Tensor, step: int) -> Tensor:
    """The arm's loss on one batch, a mean over each model's tokens, summed over the models."""
    inputs, labels = texts[..., :-1], texts[..., 1:]
    logits = models(inputs)
    given: dict[str, Any] = dict(arm.options)
    if "masked" in arm.objective:
        given["selected"] = selected(world, models, arm, texts, logits.detach(), step).flatten()
    if "distill" in arm.objective:
        with torch.no_grad():
            members = [member(inputs).softmax(-1).flatten(0, 2) for member in world.teachers(arm)]
        given["teacher"] = members if arm.members > 1 else members[0]
    if arm.objective == "oracle":
        given["oracle"] = world.shifted.oracle(texts).float().flatten(0, 2)
    if arm.reward is not None:
        labels, advantages = rewarded(world, texts, logits.detach(), arm.reward, step)
        given["advantages"] = advantages.flatten(0, 2)
    if "token_weighting" in OBJECTIVES[arm.objective].uses:
        given |= {"token_weighting": token_weighting(arm.weighting), "label_smoothing": arm.smoothing or None}
    targets = OBJECTIVES[arm.objective](labels.flatten(), **given)
    if arm.anchor:
        with torch.no_grad():
            base = world.base(inputs).softmax(-1).flatten(0, 2)
        targets = anchored(targets, labels.flatten(), base, arm.anchor)
    if arm.weights is not None:
        targets = targets.scaled(noise_weights(world, texts, arm.weights).flatten())
    return weighted_nll(logits.flatten(0, 2), targets).view(len(labels), -1).mean(1).sum()


def rewarded(world: World, texts: Tensor, logits: Tensor, reward: str, step: int) -> tuple[Tensor, Tensor]:
    """Labels (M, B, T) and advantages, (M, B, T, V) or of the label alone (M, B, T); ``Arm`` says which rewards.

    The expected policy gradient of a reward r is w(x) = p(x) · (r(x) − E_p[r]).
    """
    oracle, labels = world.shifted.oracle(texts).float(), texts[..., 1:]
    if reward == "aligned":
        return labels, oracle
    probs, paid = logits.softmax(-1), oracle if reward == "probability" else right_word(oracle)
    better = paid - (probs * paid).sum(-1, keepdim=True)
    if reward != "sampled":
        return labels, probs * better
    generator = torch.Generator().manual_seed(world.setting.seed + 1_000_003 * (step + 1))
    drawn = torch.multinomial(probs.flatten(0, 2), 1, generator=generator).view(*labels.shape, 1)
    return drawn[..., 0], better.gather(-1, drawn)[..., 0]


def right_word(oracle: Tensor) -> Tensor:
    """1 for the most probable word of each context, else 0."""
    return torch.zeros_like(oracle).scatter_(-1, oracle.argmax(-1, keepdim=True), 1.0)


def noise_weights(world: World, texts: Tensor, form: str) -> Tensor:
    """(M, B, T), with a mean of 1 in each model, from the known noise (SPEC S7b, App. B).

    ``1/variance``: weighted least squares, by the context: 1 / (1 − Σ p²), the variance of the one-hot label as the
    data have it. ``clean``: the probability that this word is not noise.
    """
    share = world.setting.noise
    oracle, labels = world.shifted.oracle(texts), texts[..., 1:]
    noisy = (1 - share) * oracle
    noisy[..., TASKS:] += share / WORDS
    if form == "clean":
        weights = (1 - share) * oracle.gather(-1, labels[..., None]) / noisy.gather(-1, labels[..., None])
    else:
        weights = 1 / (1 - noisy.square().sum(-1, keepdim=True)).clamp(min=_LEAST_VARIANCE)
    return (weights / weights.flatten(1).mean(1)[:, None, None, None])[..., 0]


def selected(world: World, models: Stacked, arm: Arm, texts: Tensor, logits: Tensor, step: int) -> Tensor:
    """(M, B, T) bool: the mask of each model over its batch."""
    shape = texts[..., 1:].shape
    scores = token_scores(world, models, arm, texts, logits, step)
    document = torch.arange(shape[1])[:, None].expand(shape[1:]).flatten()
    masks = [select(row.flatten(), arm.fraction, level=arm.level, document=document, order=arm.order) for row in scores]
    return torch.stack(masks).view(shape)


def token_scores(world: World, models: Stacked, arm: Arm, texts: Tensor, logits: Tensor, step: int) -> Tensor:
    """(M, B, T) scores by a metric of ``uncertune.selection``, or by the truth: ``expected loss``, ``excess loss``."""
    labels = texts[..., 1:]
    if arm.metric in ("expected loss", "excess loss"):
        oracle, log_probs = world.shifted.oracle(texts), logits.double().log_softmax(-1)
        return divergence(oracle, log_probs) + (entropy(oracle) if arm.metric == "expected loss" else 0)
    metric = METRICS[arm.metric]
    if metric.drawn:
        place = torch.arange(labels.shape[1] * labels.shape[2])
        within = place % LENGTH if arm.level == "token" else torch.zeros_like(place)  # one draw a document
        rows = [
            random_scores(world.setting.seed + model, step, place // LENGTH, within) for model in range(len(labels))
        ]
        return torch.stack(rows).view(labels.shape)
    stats = _Statistics(logits, labels) if metric.needs_stats else None
    extra = _EXTRAS[metric.extra](world, models, texts, step) if metric.extra is not None else None
    return scores_of(arm.metric, stats, extra)


@dataclass(frozen=True)
class _Statistics:
    """Loss and entropy (M, B, T) of the models' logits, each computed on first use."""

    logits: Tensor
    labels: Tensor

    @property
    def loss(self) -> Tensor:
        return token_losses(self.logits, self.labels)

    @property
    def entropy(self) -> Tensor:
        return entropy(self.logits.softmax(-1))


@torch.no_grad()
def _reference_loss(world: World, models: Stacked, texts: Tensor, step: int) -> Tensor:
    assert world.rho_reference is not None
    return token_losses(world.rho_reference(texts[..., :-1]), texts[..., 1:])


def _epistemic(world: World, models: Stacked, texts: Tensor, step: int) -> Tensor:
    return decomposition(models, texts, BALD_SAMPLES, step).epistemic.view(texts[..., 1:].shape)


_EXTRAS = {"reference_loss": _reference_loss, "epistemic": _epistemic}


@torch.no_grad()
def decomposition(models: Stacked, texts: Tensor, samples: int, seed: int) -> Decomposition:
    """BALD by Monte-Carlo dropout of every word (M · B · T), as ``uncertune score`` computes it."""
    sums = StreamedSums()
    identity = Logits.of(Head(torch.eye(VOCABULARY)), like=torch.zeros(1))
    with mc_dropout(models.base, DROPOUT, seed):
        for _ in range(samples):
            sums.add(models(texts[..., :-1]).flatten(0, 2), identity)
    return sums.finish()
