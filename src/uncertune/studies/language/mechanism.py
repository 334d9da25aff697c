"""(c′, C11) On the words that are not selected, does S5 keep the reference's entropy and calibration?

Unselected are, for all models, the words that the pretrained model would not select (the 75 % of lowest loss), in the
training texts and in fresh texts.
"""

from __future__ import annotations

import torch
from torch import Tensor

from uncertune.statistics.findings import Finding
from uncertune.statistics.intervals import over_seeds
from uncertune.studies.language.arms import BOTH, MASKED
from uncertune.studies.language.grammar import divergence, entropy
from uncertune.studies.language.losses import selected
from uncertune.studies.language.training import teacher, trained
from uncertune.studies.language.truth import Measures, calibration, rows_of
from uncertune.studies.language.world import World
from uncertune.studies.stacked import Stacked
from uncertune.studies.study import Answer, Array, Grid

REFERENCE = "reference (MLE)"
SHOWN = {
    "entropy": "entropy",
    "entropy_gap": "|entropy − reference's|",
    "calibration": "error of calibration",
    "kl": "KL from the truth",
}


def mechanism(world: World) -> Answer:
    """The reference, masked MLE and masked MLE with distillation on unselected words."""
    models = {"pretrained": world.base, REFERENCE: teacher(world)}
    models |= {arm.name: trained(world, arm) for arm in (MASKED, BOTH)}
    places = {"training texts": world.data, "fresh texts": world.test_in}
    found = {place: _on_unselected(world, texts, models) for place, texts in places.items()}
    tables = tuple(
        Grid(
            f"Unselected words of {place} (nats; calibration in probability)",
            "model",
            tuple(SHOWN.values()),
            tuple((name, tuple(over_seeds(one[key]) for key in SHOWN)) for name, one in by_model.items()),
        )
        for place, by_model in found.items()
    )
    rows = tuple(row for place, by_model in found.items() for row in rows_of("c'", by_model, place=place))
    findings = tuple(one for place, by_model in found.items() for one in _findings(place, by_model))
    return Answer(findings, tables, (), rows)


@torch.no_grad()
def _on_unselected(world: World, texts: Tensor, models: dict[str, Stacked]) -> dict[str, Measures]:
    kept = ~selected(world, world.base, MASKED, texts, world.base(texts[..., :-1]), 0)
    oracle = world.shifted.oracle(texts)
    log_probs = {name: one(texts[..., :-1]).double().log_softmax(-1) for name, one in models.items()}
    reference = entropy(log_probs[REFERENCE].exp())
    out: dict[str, Measures] = {}
    for name, one in log_probs.items():
        probs = one.exp()
        values = {
            "entropy": entropy(probs),
            "entropy_gap": (entropy(probs) - reference).abs(),
            "calibration": calibration(oracle, probs),
            "kl": divergence(oracle, one),
        }
        out[name] = {
            key: ((value * kept).flatten(1).sum(1) / kept.flatten(1).sum(1)).numpy() for key, value in values.items()
        }
    return out


def _findings(place: str, found: dict[str, Measures]) -> list[Finding]:
    masked, both, reference = found[MASKED.name], found[BOTH.name], found[REFERENCE]
    where = f"unselected words of {place}"

    def less(says: str, test: str, smaller: Array, larger: Array) -> Finding:
        return Finding("C11", says, f"{test}, {where}", over_seeds(larger - smaller), "above")

    return [
        less(
            "with distillation the reference's entropy is kept better than by masked MLE",
            "|entropy − reference's|, masked MLE minus with distillation (nats)",
            both["entropy_gap"],
            masked["entropy_gap"],
        ),
        less(
            "masked MLE loses the reference's calibration",
            "error of calibration, masked MLE minus reference",
            reference["calibration"],
            masked["calibration"],
        ),
        less(
            "with distillation less of it is lost",
            "error of calibration, masked MLE minus with distillation",
            both["calibration"],
            masked["calibration"],
        ),
        Finding(
            "C11",
            "with distillation the reference's calibration is kept, to 0.02",
            f"error of calibration, with distillation minus reference, {where}",
            over_seeds(both["calibration"] - reference["calibration"]),
            "below",
            0.02,
        ),
    ]
