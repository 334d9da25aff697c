"""A sweep's folder with known gains."""

import json
from pathlib import Path

import numpy as np

from helpers.report_pages import hostile_text

OUT = ("wikitext2", "mmlu_dev")
ARMS = [
    {"name": "mle", "objective": "mle", "metric": None, "level": None, "q": None},
    {"name": "distill", "objective": "distill", "metric": None, "level": None, "q": None},
    *(
        {
            "name": f"{objective}-{metric}-{q}{'-document' if level == 'document' else ''}",
            "objective": objective,
            "metric": metric,
            "level": level,
            "q": q,
        }
        for objective, metric, level, q in (
            ("masked_mle", "loss", "token", 0.1),
            ("masked_mle", "loss", "token", 0.25),
            ("masked_mle", "loss", "token", 0.5),
            ("masked_mle", "loss", "document", 0.25),
            ("masked_mle", "entropy", "token", 0.25),
            ("masked_mle_distill", "loss", "token", 0.1),
            ("masked_mle_distill", "loss", "token", 0.25),
            ("masked_mle_distill", "loss", "token", 0.5),
        )
    ),
]
# by objective: change of the loss in and out of distribution, MLE being 1.5 and 2.5
EFFECT = {
    "mle": (0.0, 0.0),
    "distill": (0.01, -0.05),
    "masked_mle": (-0.03, 0.10),
    "masked_mle_distill": (-0.03, -0.02),
}


def sweep_folder(folder: Path, *, seeds: int = 5, fail: bool = True) -> Path:
    """Losses move by ``EFFECT``, less for larger q, with noise of 0.005 that pairs share half of."""
    rng = np.random.default_rng(0)
    runs = []
    for seed in range(seeds):
        common = rng.normal(0, 0.05)
        for arm in ARMS:
            inside, outside = EFFECT[arm["objective"]]
            scale = 1.0 if arm["q"] is None else 1.25 - arm["q"]
            scale *= 0.3 if arm["level"] == "document" else 1.0
            runs.append(
                {
                    "arm": arm["name"],
                    "seed": seed,
                    "status": "done",
                    "error": None,
                    "in": measures(1.5 + common + scale * inside + rng.normal(0, 0.005), 0.6),
                    "out": {name: measures(2.5 + common + scale * outside + rng.normal(0, 0.005), 0.4) for name in OUT},
                    "minutes": 3.5,
                }
            )
    if fail:
        runs[-1] |= {"status": "failed", "error": f"loss is no number {hostile_text()}", "in": {}, "out": {}}
    content = {
        "model": "smollm2-135m",
        "data": "alpaca",
        "paper": True,
        "in_data": "alpaca, held out",
        "arms": ARMS,
        "base": {"in": measures(1.9, 0.5, kl=0.0), "out": {name: measures(2.4, 0.42, kl=0.0) for name in OUT}},
        "runs": runs,
    }
    (folder / "sweep.json").write_text(json.dumps(content))
    return folder


def measures(loss: float, accuracy: float, kl: float = 0.02) -> dict[str, float]:
    return {"loss": loss, "accuracy": accuracy - loss / 100, "ece": 0.03, "kl": kl}
