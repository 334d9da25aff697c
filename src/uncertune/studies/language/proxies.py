"""(a) BALD, loss and entropy as measures of what a model does not know, and of what cannot be known.

The truth is known: excess loss KL(oracle ‖ model) can be learned, the oracle's entropy cannot. Measured in three
places: the shifted tasks before post-training (the model is wrong and does not know it) and after it, and tasks of the
pretraining.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from uncertune.statistics.findings import Finding
from uncertune.statistics.intervals import over_seeds
from uncertune.studies.correlation import spearman
from uncertune.studies.language.grammar import Language, divergence, entropy
from uncertune.studies.language.losses import decomposition, token_losses
from uncertune.studies.language.training import teacher
from uncertune.studies.language.world import World
from uncertune.studies.stacked import Stacked
from uncertune.studies.study import Answer, Array, Drawing, Grid, Line, Panel, Row

SCORES = ("epistemic", "aleatoric", "loss", "entropy")
DECILES = 10
BEFORE = "shifted tasks, before post-training"


def proxies(world: World) -> Answer:
    """Correlations over words, model by model; tables, figure and rows."""
    places = {
        BEFORE: (world.shifted, world.test_in, world.base),
        "shifted tasks, after post-training by MLE": (world.shifted, world.test_in, teacher(world)),
        "tasks of the pretraining": (world.language, world.test_out, world.base),
    }
    found = {name: _Words.of(world, *place) for name, place in places.items()}
    rows: list[Row] = [
        {"question": "a", "place": place, "score": score, "seed": seed, what: float(value)}
        for place, words in found.items()
        for (score, what), values in words.compared().items()
        for seed, value in enumerate(values)
    ]
    panels = tuple(
        Panel(
            name,
            "tenth of the words by the score",
            "true excess loss (nats)",
            tuple(Line(one, range(1, DECILES + 1), words.by_tenth(one)) for one in (*SCORES, "excess")),
        )
        for name, words in found.items()
    )
    return Answer(
        _findings(found[BEFORE].compared()),
        tuple(_grid(name, words.compared()) for name, words in found.items()),
        (Drawing("proxies", "True excess loss, KL(oracle ‖ model), of words ranked by each score.", panels),),
        tuple(rows),
    )


class _Words:
    """Scores and truths (M, words) of all words of a place."""

    def __init__(self, values: dict[str, Tensor]) -> None:
        self.values = values

    @classmethod
    def of(cls, world: World, language: Language, texts: Tensor, models: Stacked) -> _Words:
        oracle = language.oracle(texts)
        with torch.no_grad():
            logits = models(texts[..., :-1]).double()
        parts = decomposition(models, texts, world.setting.samples, world.setting.seed)
        return cls({
            "epistemic": parts.epistemic.view(len(texts), -1),
            "aleatoric": parts.aleatoric.view(len(texts), -1),
            "loss": token_losses(logits, texts[..., 1:]).flatten(1),
            "entropy": entropy(logits.softmax(-1)).flatten(1),
            "excess": divergence(oracle, logits.log_softmax(-1)).flatten(1),
            "true entropy": entropy(oracle).flatten(1).round(decimals=9),  # equal where the rows are
        })  # fmt: skip

    def compared(self) -> dict[tuple[str, str], Array]:
        """By (score, what): Spearman's correlation with each truth and with loss and entropy, (M,); the share of all
        excess loss that the quarter of highest score holds; the score's mean."""
        out: dict[tuple[str, str], Array] = {}
        for name in (*SCORES, "excess", "true entropy"):
            score = self.values[name]
            for other in ("excess", "true entropy", "loss", "entropy"):
                out[name, f"correlation with {other}"] = spearman(score, self.values[other]).numpy()
            top = score.argsort(1, descending=True)[:, : score.shape[1] // 4]
            excess = self.values["excess"]
            out[name, "share"] = (excess.gather(1, top).sum(1) / excess.sum(1)).numpy()
            out[name, "mean"] = score.mean(1).double().numpy()
        return out

    def by_tenth(self, name: str) -> Array:
        """(M, 10): mean excess loss of the words by tenth of the score."""
        ordered = self.values["excess"].gather(1, self.values[name].argsort(1))
        return np.stack([part.mean(1).numpy() for part in ordered.tensor_split(DECILES, 1)], 1)


def _grid(place: str, compared: dict[tuple[str, str], Array]) -> Grid:
    columns = ("correlation with excess", "correlation with true entropy", "share", "mean")
    shown = ("ρ with excess loss", "ρ with true entropy", "share of excess loss in the top quarter", "mean (nats)")
    names = {"excess": "true excess loss", "true entropy": "true entropy"}
    rows = tuple(
        (names.get(score, score), tuple(over_seeds(compared[score, column]) for column in columns))
        for score in (*SCORES, *names)
    )
    return Grid(f"Scores against the truth: {place}", "score", shown, rows)


def _findings(found: dict[tuple[str, str], Array]) -> tuple[Finding, ...]:
    def rho(score: str, other: str) -> Array:
        return found[score, f"correlation with {other}"]

    differences = (
        ("epistemic uncertainty goes with loss more than with entropy",
         "ρ(epistemic, loss) − ρ(epistemic, entropy)", rho("epistemic", "loss") - rho("epistemic", "entropy")),
        ("aleatoric uncertainty goes with entropy more than with loss",
         "ρ(aleatoric, entropy) − ρ(aleatoric, loss)", rho("aleatoric", "entropy") - rho("aleatoric", "loss")),
        ("loss finds the true excess loss better than entropy does",
         "ρ(loss, excess) − ρ(entropy, excess)", rho("loss", "excess") - rho("entropy", "excess")),
        ("BALD finds the true excess loss better than loss does",
         "ρ(epistemic, excess) − ρ(loss, excess)", rho("epistemic", "excess") - rho("loss", "excess")),
        ("BALD finds the true excess loss better than entropy does",
         "ρ(epistemic, excess) − ρ(entropy, excess)", rho("epistemic", "excess") - rho("entropy", "excess")),
        ("dropout's aleatoric uncertainty finds the true entropy better than entropy does",
         "ρ(aleatoric, true entropy) − ρ(entropy, true entropy)",
         rho("aleatoric", "true entropy") - rho("entropy", "true entropy")),
    )  # fmt: skip
    return tuple(
        Finding("C1", says, f"{test}, over words of the {BEFORE}", over_seeds(values), "above")
        for says, test, values in differences
    )
