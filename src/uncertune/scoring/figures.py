"""The paper's figures of uncertainty, as PNG and SVG: Fig. 2B (correlations), Fig. 9 (losses), Fig. 10 (dropout)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from uncertune.report import paper_figure
from uncertune.scoring.correlation import PROXIES, UNCERTAINTIES, Array, Correlations
from uncertune.statistics.intervals import Estimate

COLOURS = {"loss": "#0072B2", "entropy": "#E69F00", "epistemic": "#D55E00"}  # apart also for colour-blind readers


def correlations(stem: Path, found: Correlations, title: str) -> None:
    """Fig. 2B: each uncertainty's correlation with loss and with entropy; bars are 95 % intervals over documents."""
    with paper_figure(stem, 2, (7.2, 3.2)) as (figure, panels):
        for axes, (kind, pairs) in zip(panels, found.by.items(), strict=True):
            for shift, proxy in zip((-0.2, 0.2), PROXIES, strict=True):
                estimates = [pairs[uncertainty, proxy] for uncertainty in UNCERTAINTIES]
                places = [place + shift for place in range(len(estimates))]
                axes.bar(places, [e.value for e in estimates], 0.36, color=COLOURS[proxy], label=f"with {proxy}")
                _whiskers(axes, places, estimates)
            axes.set_xticks(range(len(UNCERTAINTIES)), UNCERTAINTIES)
            axes.set_title(kind.capitalize() if kind == "pearson" else "Spearman, of ranks", fontsize=9, loc="left")
            axes.axhline(0, color="black", linewidth=0.6)
        panels[0].set_ylabel("correlation over tokens")
        panels[1].legend(frameon=False, fontsize=8)
        figure.suptitle(f"{title}: {found.tokens:,} tokens of {found.documents:,} documents", fontsize=9)


def losses(stem: Path, loss: Array, document: NDArray[np.int64], title: str) -> None:
    """Fig. 9: how losses are distributed over tokens, and their means over documents."""
    means = np.bincount(document, loss) / np.maximum(np.bincount(document), 1)
    means = means[np.bincount(document) > 0]
    with paper_figure(stem, 2, (7.2, 2.8)) as (figure, panels):
        for axes, values, what in zip(panels, (loss, means), ("token", "document, mean over tokens"), strict=True):
            axes.hist(values, bins=40, weights=np.full(len(values), 1 / len(values)), color=COLOURS["loss"])
            axes.axvline(float(np.quantile(values, 0.75)), color="black", linewidth=0.8, linestyle="--")
            axes.set_xlabel(f"loss of a {what} (nats)")
        panels[0].set_ylabel("share")
        figure.suptitle(f"{title}: right of the dashed line, the hardest quarter", fontsize=9)


def dropout(stem: Path, by_rate: Mapping[float, Estimate], title: str) -> None:
    """Fig. 10: mean epistemic uncertainty of a token against the dropout rate."""
    rates = sorted(by_rate)
    with paper_figure(stem, 1, (4.2, 3.0)) as (figure, (axes,)):
        estimates = [by_rate[rate] for rate in rates]
        axes.plot(rates, [e.value for e in estimates], "o-", color=COLOURS["epistemic"])
        _whiskers(axes, rates, estimates)
        axes.set_xlabel("dropout rate")
        axes.set_ylabel("epistemic uncertainty, BALD (nats)")
        axes.set_ylim(bottom=0)
        axes.set_xlim(left=0)
        figure.suptitle(title, fontsize=9)


def _whiskers(axes: Any, places: Sequence[float], estimates: Sequence[Estimate]) -> None:
    known = [(place, e) for place, e in zip(places, estimates, strict=True) if np.isfinite([e.low, e.high]).all()]
    if known:
        where = [place for place, _ in known]
        axes.vlines(where, [e.low for _, e in known], [e.high for _, e in known], color="black", linewidth=1)
