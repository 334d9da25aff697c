"""Fig. 2C (C.1.1): which data to train on, near the optimum and far from it, in polynomial regression.

A polynomial of degree 5 with known coefficients, and data with known noise. At each stage (size of the displacement of
the coefficients) one gradient step is made on each datum alone; the decrease of the validation error is correlated over
the data with their uncertainties.

Shape legend: ``S`` seeds (polynomials), ``G`` stages, ``N`` training data, ``P`` coefficients, ``R`` draws.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from torch import Tensor

from uncertune.statistics.findings import Finding
from uncertune.statistics.intervals import over_seeds
from uncertune.studies.correlation import spearman
from uncertune.studies.study import Answer, Array, Drawing, Line, Panel, Progress, Study

DEGREE = 5
DATA = 20
VALIDATION = 100
NOISE = 0.1
COEFFICIENT_NOISE = 0.002
DRAWS = 1000
LEARNING_RATE = 0.01
STAGES = 25
QUANTITIES = ("epistemic", "aleatoric", "loss")
TOP = DATA // 4
_AT_ONCE = 50  # seeds at a time, to bound the memory of the draws


def powers(x: Tensor) -> Tensor:
    """(...,) → (..., P): 1, x, …, x⁵."""
    return x[..., None] ** torch.arange(DEGREE + 1, dtype=x.dtype)


def epistemic_variance(features: Tensor, generator: torch.Generator, draws: int = DRAWS) -> Tensor:
    """(S, N, P) → (S, N): variance of the predictions under noise on the coefficients, over ``draws`` draws.

    Its expectation is 0.002² · Σ_p x^{2p} for any coefficients.
    """
    shaken_SRP = COEFFICIENT_NOISE * torch.randn(
        features.shape[0], draws, features.shape[-1], generator=generator, dtype=features.dtype
    )
    return torch.einsum("srp,snp->snr", shaken_SRP, features).var(-1)


def measured(seeds: int, generator: torch.Generator, scales_G: Tensor) -> dict[str, Tensor]:
    """By stage, (S, G): Spearman's correlation of each quantity with the decrease of validation error over the data;
    and ``hurt``: the share of steps that raise it, among all and among the quarter with the highest uncertainty."""
    true_SP = torch.randn(seeds, DEGREE + 1, generator=generator, dtype=torch.float64)
    x_SN = 2 * torch.rand(seeds, DATA, generator=generator, dtype=torch.float64) - 1
    features_SNP = powers(x_SN)
    sd_SN = NOISE * torch.rand(seeds, DATA, generator=generator, dtype=torch.float64)
    noise_SN = sd_SN * torch.randn(seeds, DATA, generator=generator, dtype=torch.float64)
    y_SN = torch.einsum("snp,sp->sn", features_SNP, true_SP) + noise_SN
    epistemic_SN = epistemic_variance(features_SNP, generator)
    displaced_SGP = scales_G[:, None] * torch.randn(
        seeds, len(scales_G), DEGREE + 1, generator=generator, dtype=torch.float64
    )
    now_SGP = true_SP[:, None] + displaced_SGP
    residual_SGN = torch.einsum("snp,sgp->sgn", features_SNP, now_SGP) - y_SN[:, None]
    drop_SGN = drops(displaced_SGP, residual_SGN, features_SNP)
    given = {"epistemic": epistemic_SN[:, None], "aleatoric": sd_SN[:, None], "loss": residual_SGN.square()}
    out = {name: spearman(value, drop_SGN) for name, value in given.items()}
    hurt_SGN = (drop_SGN < 0).double()
    for name in ("epistemic", "aleatoric"):
        top_SGT = given[name].argsort(-1, descending=True)[..., :TOP].expand(-1, len(scales_G), -1)
        out[f"hurt {name}"] = hurt_SGN.gather(-1, top_SGT).mean(-1)
    return out | {"hurt all": hurt_SGN.mean(-1)}


def drops(displaced_SGP: Tensor, residual_SGN: Tensor, features_SNP: Tensor) -> Tensor:
    """(S, G, N): the decrease of the mean squared validation error by one gradient step on each datum alone. The step
    is on half the datum's squared error."""
    validation_VP = powers(torch.linspace(-1, 1, VALIDATION, dtype=torch.float64))
    second_PP = validation_VP.T @ validation_VP / VALIDATION
    after_SGNP = displaced_SGP[:, :, None] - LEARNING_RATE * residual_SGN[..., None] * features_SNP[:, None]
    before_SG1 = torch.einsum("sgp,pq,sgq->sg", displaced_SGP, second_PP, displaced_SGP)[..., None]
    return before_SG1 - torch.einsum("sgnp,pq,sgnq->sgn", after_SGNP, second_PP, after_SGNP)


def run(seeds: int, seed: int, small: bool, data: str | None, progress: Progress) -> Study:
    """Fig. 2C over ``seeds`` random polynomials."""
    generator = torch.Generator().manual_seed(seed)
    scales_G = torch.logspace(-3, 0, 7 if small else STAGES, dtype=torch.float64)
    parts: list[dict[str, Tensor]] = []
    for start in range(0, seeds, _AT_ONCE):
        progress("polynomials", start, seeds)
        parts.append(measured(min(_AT_ONCE, seeds - start), generator, scales_G))
    progress("polynomials", seeds, seeds)
    found = {name: torch.cat([part[name] for part in parts]).numpy() for name in parts[0]}
    scales = [float(scale) for scale in scales_G]
    rows = tuple(
        {"seed": index, "displacement": scale, **{name: float(values[index, stage]) for name, values in found.items()}}
        for index in range(seeds)
        for stage, scale in enumerate(scales)
    )
    return Study(
        "polynomial",
        "Which data to train on, near the optimum and far from it",
        "A polynomial of degree 5, 20 data with known noise. Far from the optimum the data to train on are those the "
        "model is uncertain about; near it, those with little noise (Fig. 2C, C.1.1).",
        {"polynomials": str(seeds), "stages": str(len(scales)), "seed": str(seed)},
        Answer(_findings(found), (), (_drawing(scales, found),), rows),
    )


def _drawing(scales: list[float], found: dict[str, Array]) -> Drawing:
    label = "displacement of the coefficients"
    lines = tuple(Line(name, scales, found[name]) for name in QUANTITIES)
    names = {"hurt epistemic": "most epistemic quarter", "hurt aleatoric": "most aleatoric quarter", "hurt all": "all"}
    hurt = tuple(Line(shown, scales, found[name]) for name, shown in names.items())
    return Drawing(
        "fig2c",
        "Which uncertainty says what helps, from near the optimum (left) to far from it (right).",
        (
            Panel("Fig. 2C", label, "correlation with the drop of validation error", lines, log_x=True),
            Panel("steps that hurt", label, "share that raises the validation error", hurt, log_x=True),
        ),
    )


def _findings(found: dict[str, Array]) -> tuple[Finding, ...]:
    far, near = -1, 0
    at_far, at_near = "displacement 1", "displacement 0.001"

    def finding(says: str, test: str, values: Array, side: Literal["above", "below"], level: float = 0.0) -> Finding:
        return Finding("C2", says, test, over_seeds(values), side, level)

    ratio = "correlation with the drop of the validation error"
    return (
        finding("far from the optimum, high-epistemic data help most",
                f"{ratio}: epistemic, {at_far}", found["epistemic"][:, far], "above"),
        finding("far from the optimum, epistemic uncertainty matters more than aleatoric",
                f"difference of the sizes of the two correlations, {at_far}",
                np.abs(found["epistemic"][:, far]) - np.abs(found["aleatoric"][:, far]), "above"),
        finding("near the optimum, high-epistemic data can hurt",
                f"{ratio}: epistemic, {at_near}", found["epistemic"][:, near], "below"),
        finding("near the optimum, most steps on high-epistemic data hurt",
                f"share of steps on the most epistemic quarter that raise the validation error, {at_near}",
                found["hurt epistemic"][:, near], "above", 0.5),
        finding("near the optimum, high-aleatoric data hurt",
                f"{ratio}: aleatoric, {at_near}", found["aleatoric"][:, near], "below"),
        finding("near the optimum, most steps on high-aleatoric data hurt",
                f"share of steps on the most aleatoric quarter that raise the validation error, {at_near}",
                found["hurt aleatoric"][:, near], "above", 0.5),
        finding("near the optimum, aleatoric uncertainty matters more than epistemic",
                f"difference of the sizes of the two correlations, {at_near}",
                np.abs(found["aleatoric"][:, near]) - np.abs(found["epistemic"][:, near]), "above"),
    )  # fmt: skip
