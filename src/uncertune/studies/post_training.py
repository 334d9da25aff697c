"""The study ``language``: every objective on a language whose truth is known, in and out of distribution.

A small transformer is trained on all tasks, then post-trained on texts of a *shifted* version of two of them. In
distribution is the shifted version of those two, out of distribution the other four tasks; the measure is the exact
KL from the truth. Selection, objectives and uncertainty are those of the real training.

Shape legend: ``M`` models (one a seed), ``B`` texts, ``T`` words, ``V`` vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from uncertune.intervals import over_seeds
from uncertune.objectives import OBJECTIVES, weighted_nll
from uncertune.selection import random_scores, select
from uncertune.studies.language import (
    LENGTH,
    TASKS,
    VOCABULARY,
    Language,
    Transformer,
    divergence,
    entropy,
)
from uncertune.studies.polynomial import spearman
from uncertune.studies.stacked import Stacked
from uncertune.studies.study import Drawing, Finding, Line, Panel, Progress, Scatter, Spot, Study
from uncertune.uncertainty import mc_dropout
from uncertune.uncertainty.bald import Decomposition, Logits, StreamedSums

IN_TASKS = [0, 1]
OUT_TASKS = list(range(2, TASKS))
FRACTIONS = (0.05, 0.1, 0.25, 0.5, 0.75)
DROPOUT = 0.1
BALD_SAMPLES = 10


@dataclass(frozen=True)
class Setting:
    """One post-training set-up."""

    seeds: int
    seed: int
    pretraining_steps: int = 3000
    pretraining_batch: int = 32
    pretraining_rate: float = 3e-3
    texts: int = 128
    batch: int = 32
    epochs: int = 8
    rate: float = 1e-3
    shift: float = 0.5
    noise: float = 0.1
    test_texts: int = 192
    samples: int = 100


@dataclass(frozen=True)
class Arm:
    """An objective and which tokens it selects."""

    objective: str
    metric: str = "loss"
    fraction: float = 0.25
    level: str = "token"
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        if "masked" not in self.objective:
            return self.objective
        return f"{self.objective} {self.metric} {self.level} {self.fraction:g}"


def arms() -> list[Arm]:
    """The table of objectives: each alone; both masked ones over fractions, metrics and levels."""
    out = [Arm("mle"), Arm("distill"), Arm("truncated_distill", options={"top_k": 4}), Arm("oracle")]
    for objective in ("masked_mle", "masked_mle_distill"):
        out += [Arm(objective, fraction=fraction) for fraction in FRACTIONS]
        out += [Arm(objective, metric=metric) for metric in ("entropy", "rho", "bald", "random")]
        out += [Arm(objective, level="document")]
    return out


MLE, MASKED, BOTH = Arm("mle"), Arm("masked_mle"), Arm("masked_mle_distill")


class World:
    """Languages, their shifted versions, and the models pretrained on them; data of the same seeds for every arm."""

    def __init__(self, setting: Setting, language: Language, base: Stacked) -> None:
        self.setting = setting
        self.language = language
        self.base = base
        generator = torch.Generator().manual_seed(setting.seed + 1)
        self.shifted = language.shifted(len(IN_TASKS), setting.shift, generator)
        self.data = self.shifted.sample(IN_TASKS, setting.texts, generator, setting.noise)
        self.holdout = self.shifted.sample(IN_TASKS, max(4, setting.texts // 10), generator, setting.noise)
        self.test_in = self.shifted.sample(IN_TASKS, setting.test_texts, generator)
        self.test_out = language.sample(OUT_TASKS, setting.test_texts, generator)
        count = setting.texts
        self.order = [torch.randperm(count, generator=generator) for _ in range(setting.epochs)]
        self.teacher: Stacked | None = None
        self.rho_reference: Stacked | None = None

    @classmethod
    def pretrained(cls, setting: Setting, progress: Progress) -> World:
        """Languages drawn and models trained on all their tasks, dropout on."""
        generator = torch.Generator().manual_seed(setting.seed)
        language = Language.draw(setting.seeds, generator)
        models = Stacked(Transformer, range(setting.seed, setting.seed + setting.seeds))
        models.base.train()
        optimizer = torch.optim.AdamW(models.parameters.values(), setting.pretraining_rate, weight_decay=0.0)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, setting.pretraining_steps)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(setting.seed)
            for step in range(setting.pretraining_steps):
                progress("pretraining", step, setting.pretraining_steps)
                texts = language.sample(list(range(TASKS)), setting.pretraining_batch, generator)
                loss = token_losses(models(texts[..., :-1]), texts[..., 1:])
                optimizer.zero_grad()
                loss.flatten(1).mean(1).sum().backward()
                optimizer.step()
                schedule.step()
        models.base.eval()
        progress("pretraining", setting.pretraining_steps, setting.pretraining_steps)
        return cls(setting, language, models)

    def changed(self, **fields: Any) -> World:
        """The same languages and pretrained models in another set-up."""
        return World(replace(self.setting, **fields), self.language, self.base)

    def references(self) -> None:
        """Stage 1: the teacher, a copy trained with plain MLE on the same data; and RHO's, on data of its own."""
        if self.teacher is None:
            self.teacher = self.trained(MLE)
            self.rho_reference = self.trained(MLE, self.holdout)

    def trained(self, arm: Arm, data: Tensor | None = None) -> Stacked:
        """A copy of the pretrained models, post-trained with ``arm``."""
        if "distill" in arm.objective or arm.metric == "rho":
            self.references()
        return post_train(self, self.base.copy(), arm, self.data if data is None else data)


def token_losses(logits: Tensor, labels: Tensor) -> Tensor:
    """(M, B, T, V) and (M, B, T) → (M, B, T) cross-entropies, by the objectives' room."""
    targets = OBJECTIVES["mle"](labels.flatten())
    return weighted_nll(logits.flatten(0, 2), targets).view(labels.shape)


def post_train(world: World, models: Stacked, arm: Arm, data: Tensor) -> Stacked:
    """AdamW at a constant rate, dropout off, every arm over the same batches in the same order."""
    setting = world.setting
    optimizer = torch.optim.AdamW(models.parameters.values(), setting.rate, weight_decay=0.0)
    step = 0
    for epoch in range(setting.epochs):
        order = world.order[epoch]
        order = order[order < data.shape[1]]
        for start in range(0, len(order), setting.batch):
            texts = data[:, order[start : start + setting.batch]]
            optimizer.zero_grad()
            objective_loss(world, models, arm, texts, step).backward()
            optimizer.step()
            step += 1
    return models


def objective_loss(world: World, models: Stacked, arm: Arm, texts: Tensor, step: int) -> Tensor:
    """The arm's loss on one batch, a mean over each model's tokens, summed over the models."""
    inputs, labels = texts[..., :-1], texts[..., 1:]
    logits = models(inputs)
    given: dict[str, Any] = dict(arm.options)
    if "masked" in arm.objective:
        given["selected"] = selected(world, models, arm, texts, logits.detach(), step).flatten()
    if "distill" in arm.objective:
        assert world.teacher is not None
        with torch.no_grad():
            given["teacher"] = world.teacher(inputs).softmax(-1).flatten(0, 2)
    if arm.objective == "oracle":
        given["oracle"] = world.shifted.oracle(texts).float().flatten(0, 2)
    if arm.objective == "policy_gradient":
        given["advantages"] = advantages(world, texts, logits.detach(), arm.options["reward"]).flatten(0, 2)
        given.pop("reward")
    targets = OBJECTIVES[arm.objective](labels.flatten(), **given)
    return weighted_nll(logits.flatten(0, 2), targets).view(len(labels), -1).mean(1).sum()


def advantages(world: World, texts: Tensor, logits: Tensor, reward: str) -> Tensor:
    """(M, B, T, V). ``aligned``: A = p_oracle, as in App. B.1. ``correct``: the expected policy gradient of the
    reward 1 for the most probable word, w = p · (r − E_p[r])."""
    oracle = world.shifted.oracle(texts).float()
    if reward == "aligned":
        return oracle
    probs, right = logits.softmax(-1), correct(oracle)
    return probs * (right - (probs * right).sum(-1, keepdim=True))


def correct(oracle: Tensor) -> Tensor:
    """1 for the most probable word of each context."""
    return torch.zeros_like(oracle).scatter_(-1, oracle.argmax(-1, keepdim=True), 1.0)


def selected(world: World, models: Stacked, arm: Arm, texts: Tensor, logits: Tensor, step: int) -> Tensor:
    """(M, B, T) bool: each model's own mask over its batch."""
    labels = texts[..., 1:]
    scores = token_scores(world, models, arm.metric, texts, logits, step)
    document = torch.arange(labels.shape[1])[:, None].expand(labels.shape[1:]).flatten()
    masks = [
        select(row.flatten(), arm.fraction, level=arm.level, document=document)  # type: ignore[arg-type]
        for row in scores
    ]
    return torch.stack(masks).view(labels.shape)


def token_scores(world: World, models: Stacked, metric: str, texts: Tensor, logits: Tensor, step: int) -> Tensor:
    """(M, B, T), by any of the metrics of ``uncertune.selection``."""
    labels = texts[..., 1:]
    if metric == "entropy":
        return entropy(logits.softmax(-1))
    if metric == "bald":
        return decomposition(models, texts, BALD_SAMPLES, step).epistemic.view(labels.shape)
    if metric == "random":
        place = torch.arange(labels.shape[1] * labels.shape[2])
        rows = [
            random_scores(world.setting.seed + model, step, place // LENGTH, place % LENGTH)
            for model in range(len(labels))
        ]
        return torch.stack(rows).view(labels.shape)
    loss = token_losses(logits, labels)
    if metric == "rho":
        assert world.rho_reference is not None
        with torch.no_grad():
            loss = loss - token_losses(world.rho_reference(texts[..., :-1]), labels)
    return loss


@torch.no_grad()
def decomposition(models: Stacked, texts: Tensor, samples: int, seed: int) -> Decomposition:
    """BALD by Monte-Carlo dropout of every word (M · B · T), as ``uncertune score`` computes it."""
    sums = StreamedSums()
    identity = Logits.of(torch.eye(VOCABULARY), like=torch.zeros(1))
    with mc_dropout(models.base, DROPOUT, seed):
        for _ in range(samples):
            sums.add(models(texts[..., :-1]).flatten(0, 2), identity)
    return sums.finish()


@torch.no_grad()
def measures(world: World, models: Stacked) -> dict[str, np.ndarray]:
    """Per model (M,): KL from the truth in and out of distribution, how often the most probable word is the model's,
    the probability of that word, and the error of calibration, exactly (mean |p(top word) − its true probability|)."""
    out = {}
    for name, language, texts in (("in", world.shifted, world.test_in), ("out", world.language, world.test_out)):
        oracle = language.oracle(texts)
        log_probs = models(texts[..., :-1]).double().log_softmax(-1)
        probs = log_probs.exp()
        out[f"kl_{name}"] = divergence(oracle, log_probs).flatten(1).mean(1).numpy()
        top = probs.argmax(-1, keepdim=True)
        out[f"reward_{name}"] = (probs * correct(oracle)).sum(-1).flatten(1).mean(1).numpy()
        gap = (probs.gather(-1, top) - oracle.gather(-1, top)).abs()
        out[f"calibration_{name}"] = gap.flatten(1).mean(1).numpy()
    return out


# ---- the questions


def proxies(world: World, samples: int) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """(a) Spearman correlations over words of what can be computed with the truth, before post-training, on the
    shifted tasks; and the true excess loss of words by decile of each score, (M, 10)."""
    texts = world.test_in
    oracle = world.shifted.oracle(texts)
    with torch.no_grad():
        logits = world.base(texts[..., :-1]).double()
    found = decomposition(world.base, texts, samples, world.setting.seed)
    models = len(texts)
    scores = {
        "epistemic": found.epistemic.view(models, -1),
        "aleatoric": found.aleatoric.view(models, -1),
        "loss": token_losses(logits, texts[..., 1:]).flatten(1),
        "entropy": entropy(logits.softmax(-1)).flatten(1),
    }
    truth = {
        "excess": divergence(oracle, logits.log_softmax(-1)).flatten(1),
        "true entropy": entropy(oracle).flatten(1),
    }
    correlations = {
        f"{name}, {what}": spearman(score, value).numpy()
        for name, score in scores.items()
        for what, value in truth.items()
    }
    deciles = {}
    for name, score in (*scores.items(), ("the truth itself", truth["excess"])):
        ordered = truth["excess"].gather(1, score.argsort(1))
        parts = [part.mean(1).numpy() for part in ordered.tensor_split(10, 1)]
        deciles[name] = np.stack(parts, 1)
    return correlations, deciles


def mechanism(world: World, trained: Mapping[str, Stacked]) -> dict[str, dict[str, np.ndarray]]:
    """(c′, C11) On the words of the data that the pretrained model would not select: how far each model's entropy is
    from the reference's, and its exact error of calibration, (M,) each."""
    world.references()
    assert world.teacher is not None
    texts = world.data
    with torch.no_grad():
        mask = selected(world, world.base, MASKED, texts, world.base(texts[..., :-1]), 0)
        oracle = world.shifted.oracle(texts)
        kept = (~mask).double()
        reference = entropy(world.teacher(texts[..., :-1]).double().softmax(-1))
        out = {}
        for name, models in trained.items():
            probs = models(texts[..., :-1]).double().softmax(-1)
            top = probs.argmax(-1, keepdim=True)
            gap = (probs.gather(-1, top) - oracle.gather(-1, top)).abs()[..., 0]
            parts = {"entropy_gap": (entropy(probs) - reference).abs(), "calibration": gap}
            out[name] = {
                key: ((value * kept).flatten(1).sum(1) / kept.flatten(1).sum(1)).numpy() for key, value in parts.items()
            }
    return out


# ---- the study


def run(seeds: int, seed: int, small: bool, data: str | None, progress: Progress) -> Study:
    """Every question over ``seeds`` languages, each with a model of its own."""
    setting = Setting(seeds, seed)
    if small:
        setting = replace(setting, pretraining_steps=600, texts=64, epochs=4, samples=20, test_texts=64)
    world = World.pretrained(setting, progress)
    correlations, deciles = proxies(world, setting.samples)

    results: dict[str, dict[str, np.ndarray]] = {"pretrained": measures(world, world.base)}
    kept: dict[str, Stacked] = {}
    table = arms()
    for index, arm in enumerate(table):
        progress("objectives", index, len(table))
        models = world.trained(arm)
        results[arm.name] = measures(world, models)
        if arm in (MLE, MASKED, BOTH):
            kept[arm.name] = models
    progress("objectives", len(table), len(table))
    rewarded = _rewarded(world, progress)
    results |= rewarded.results
    unselected = mechanism(world, kept)
    when = _when(world, small, progress)

    findings = [
        *_proxy_findings(correlations),
        *_objective_findings(results),
        *rewarded.findings,
        *_mechanism_findings(unselected),
    ]
    rows: list[dict[str, float | str]] = [
        {"question": "b", "arm": name, "seed": s, **{key: float(value[s]) for key, value in found.items()}}
        for name, found in results.items()
        for s in range(seeds)
    ]
    rows += [
        {"question": "a", "arm": name, "seed": s, "spearman": float(value[s])}
        for name, value in correlations.items()
        for s in range(seeds)
    ]
    rows += [
        {"question": "c'", "arm": name, "seed": s, **{key: float(value[s]) for key, value in found.items()}}
        for name, found in unselected.items()
        for s in range(seeds)
    ]
    rows += when.rows
    return Study(
        "language",
        "A language whose uncertainty is known",
        "A small transformer learns six tasks of a language with a known distribution, and is post-trained on a "
        "shifted version of two. So the truth is at hand: how good are BALD, loss and entropy as measures of what a "
        "model does not know, and what does each objective gain and lose, in nats from the truth?",
        {
            "seeds": str(seeds),
            "parameters": str(sum(value[0].numel() for value in world.base.parameters.values())),
            "pretraining": f"{setting.pretraining_steps} steps of {setting.pretraining_batch} texts",
            "post-training": f"{setting.texts} texts, {setting.epochs} epochs, batches of {setting.batch}, AdamW at "
            f"{setting.rate:g}, shift {setting.shift:g}, noise {setting.noise:g}",
            "seed": str(seed),
        },
        tuple(findings),
        (
            Drawing(
                "proxies",
                "True excess loss, KL(oracle ‖ model), of words ranked by each score (before post-training).",
                (
                    Panel(
                        "what a score finds",
                        "decile of the score",
                        "true excess loss (nats)",
                        tuple(Line(name, range(1, 11), value) for name, value in deciles.items()),
                    ),
                ),
            ),
            Drawing(
                "frontier",
                "KL from the truth after post-training, in and out of distribution.",
                (
                    Scatter(
                        "every objective",
                        "in distribution (nats)",
                        "out of distribution (nats)",
                        tuple(
                            Spot(name, found["kl_in"], found["kl_out"])
                            for name, found in results.items()
                            if name != "pretrained" and "policy" not in name
                        ),
                    ),
                ),
            ),
            Drawing("fraction", "How many tokens to select, by loss.", _fraction_panels(results)),
            when.drawing,
        ),
        tuple(rows),
    )


def _fraction_panels(results: Mapping[str, Mapping[str, np.ndarray]]) -> tuple[Panel, ...]:
    panels = []
    for where, title in (("kl_in", "in distribution"), ("kl_out", "out of distribution")):
        lines = []
        for objective in ("masked_mle", "masked_mle_distill"):
            names = [Arm(objective, fraction=fraction).name for fraction in FRACTIONS]
            values = [results[name][where] for name in names] + [results["mle"][where]]
            lines.append(Line(objective, (*FRACTIONS, 1.0), np.stack(values, 1)))
        panels.append(Panel(title, "fraction q (1: MLE)", "KL from the truth (nats)", tuple(lines)))
    return tuple(panels)


def _proxy_findings(found: Mapping[str, np.ndarray]) -> list[Finding]:
    where = "Spearman correlation over words of the shifted tasks, before post-training"
    pairs = (
        ("epistemic, excess", "loss, excess", "BALD finds what the model does not know better than loss does"),
        ("epistemic, excess", "entropy, excess", "BALD finds what the model does not know better than entropy does"),
        ("loss, excess", "entropy, excess", "loss finds what the model does not know better than entropy does"),
        ("aleatoric, true entropy", "loss, true entropy", "dropout's aleatoric uncertainty is nearer to the truth's "
         "entropy than loss is"),
    )  # fmt: skip
    out = [
        Finding("C1 with truth", says, f"{where}: {a} minus {b}", over_seeds(found[a] - found[b]), "above")
        for a, b, says in pairs
    ]
    for name in ("epistemic, excess", "loss, excess", "entropy, excess", "aleatoric, true entropy"):
        out.append(Finding("C1 with truth", f"{name} correlate", where, over_seeds(found[name]), "above"))
    return out


def _objective_findings(results: Mapping[str, Mapping[str, np.ndarray]]) -> list[Finding]:
    mle, masked, both = (results[arm.name] for arm in (MLE, MASKED, BOTH))
    document = results[Arm("masked_mle", level="document").name]

    def less(claim: str, says: str, a: Mapping[str, np.ndarray], b: Mapping[str, np.ndarray], where: str) -> Finding:
        test = f"KL from the truth, {'in' if where == 'kl_in' else 'out of'} distribution, paired difference (nats)"
        return Finding(claim, says, test, over_seeds(a[where] - b[where]), "below")

    out = [
        less("C5", "masked MLE learns more than MLE in distribution", masked, mle, "kl_in"),
        less("C5", "masked MLE loses more than MLE out of distribution", mle, masked, "kl_out"),
        less("C5", "with distillation it learns more than MLE in distribution", both, mle, "kl_in"),
        less("C5", "with distillation it loses less than masked MLE out of distribution", both, masked, "kl_out"),
        less("C5", "with distillation it loses less than MLE out of distribution", both, mle, "kl_out"),
        less("C3", "token level beats document level in distribution (masked MLE)", masked, document, "kl_in"),
    ]
    for metric in ("entropy", "rho", "bald", "random"):
        other = results[Arm("masked_mle", metric=metric).name]
        out.append(less("C3", f"loss beats {metric} in distribution (masked MLE)", masked, other, "kl_in"))
    return out


def _mechanism_findings(found: Mapping[str, Mapping[str, np.ndarray]]) -> list[Finding]:
    both, masked = found[BOTH.name], found[MASKED.name]
    where = "mean over the words that the pretrained model would not select: with distillation minus without"
    return [
        Finding(
            "C11",
            "on unselected tokens, distillation keeps the reference's entropy, masked MLE does not",
            f"distance of the entropy from the reference's, {where} (nats)",
            over_seeds(both["entropy_gap"] - masked["entropy_gap"]),
            "below",
        ),
        Finding(
            "C11",
            "on unselected tokens, distillation keeps the model calibrated, masked MLE does not",
            f"exact error of calibration, {where}",
            over_seeds(both["calibration"] - masked["calibration"]),
            "below",
        ),
    ]


@dataclass(frozen=True)
class _Rewarded:
    findings: list[Finding]
    results: dict[str, dict[str, np.ndarray]]


def _rewarded(world: World, progress: Progress) -> _Rewarded:
    """(c, C9) Policy gradient with a reward that is the distribution itself, and with one that is not."""
    models: dict[str, Stacked] = {}
    table: list[tuple[str, Callable[[], Stacked]]] = [
        ("oracle distillation", lambda: world.trained(Arm("oracle"))),
        ("policy_gradient aligned", lambda: world.trained(Arm("policy_gradient", options={"reward": "aligned"}))),
        ("policy_gradient correct", lambda: world.trained(Arm("policy_gradient", options={"reward": "correct"}))),
        ("mle", lambda: world.trained(MLE)),
    ]
    for index, (name, make) in enumerate(table):
        progress("rewards", index, len(table))
        models[name] = make()
    progress("rewards", len(table), len(table))
    results = {name: measures(world, one) for name, one in models.items() if name.startswith("policy")}
    found = {name: measures(world, one)["reward_in"] for name, one in models.items()}
    aligned, oracle = models["policy_gradient aligned"], models["oracle distillation"]
    apart = [
        (aligned.parameters[name] - oracle.parameters[name]).abs().flatten(1).amax(1).double().detach().numpy()
        for name in oracle.parameters
    ]
    reward = "expected reward (1 for the most probable word), in distribution, paired difference"
    return _Rewarded(
        [
            Finding(
                "C9",
                "with A = p_oracle, policy gradient is distillation of the oracle",
                "largest difference of a parameter after training, less 1e-6",
                over_seeds(np.max(apart, 0)),
                "below",
                1e-6,
            ),
            Finding(
                "C9",
                "with a reward of its own, policy gradient beats distillation of the oracle",
                reward,
                over_seeds(found["policy_gradient correct"] - found["oracle distillation"]),
                "above",
            ),
            Finding(
                "C9",
                "distillation of the oracle beats MLE",
                reward,
                over_seeds(found["oracle distillation"] - found["mle"]),
                "above",
            ),
        ],
        results,
    )


@dataclass(frozen=True)
class _When:
    drawing: Drawing
    rows: list[dict[str, float | str]]


def _when(world: World, small: bool, progress: Progress) -> _When:
    """(d) Gain and loss against MLE when label noise, shift and the number of texts change, one at a time."""
    grid: dict[str, tuple[float, ...]] = {
        "noise": (0.0, 0.1, 0.3),
        "shift": (0.25, 0.5, 1.0),
        "texts": (32, 128) if small else (32, 128, 512),
    }
    total = sum(map(len, grid.values()))
    rows: list[dict[str, float | str]] = []
    panels = []
    done = 0
    for what, values in grid.items():
        gains: dict[str, list[np.ndarray]] = {}
        for value in values:
            progress("when it helps", done, total)
            done += 1
            here = world.changed(**{what: int(value) if what == "texts" else value})
            base = measures(here, here.trained(MLE))
            for arm in (MASKED, BOTH):
                found = measures(here, here.trained(arm))
                for where in ("in", "out"):
                    gain = base[f"kl_{where}"] - found[f"kl_{where}"]
                    gains.setdefault(f"{arm.objective}, {where}", []).append(gain)
                    rows += [
                        {"question": "d", "arm": arm.name, "seed": s, what: value, f"gain_{where}": float(gain[s])}
                        for s in range(len(gain))
                    ]
        lines = tuple(Line(name, values, np.stack(parts, 1)) for name, parts in gains.items())
        panels.append(Panel(what, what, "gain over MLE (nats)", lines, log_x=what == "texts"))
    progress("when it helps", total, total)
    title = "When it helps: KL from the truth below MLE's, in and out of distribution (above 0 is better than MLE)."
    return _When(Drawing("when", title, tuple(panels)), rows)
