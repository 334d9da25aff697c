"""Fig. 2C (C.1.1): which data should be trained on, near the optimum and far from it, in polynomial regression.

A polynomial of degree 5 with known coefficients; data with known noise. At each stage (coefficients displaced by more
or less) one gradient step is made on each datum by itself; how much it lowers the validation error is correlated, over
the data, with the datum's uncertainties.

Shape legend: ``S`` seeds (polynomials), ``G`` stages, ``N`` training data, ``P`` coefficients, ``R`` draws.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from uncertune.intervals import over_seeds
from uncertune.studies.study import Drawing, Finding, Line, Panel, Progress, Study

DEGREE = 5
DATA = 20
VALIDATION = 100
NOISE = 0.1
COEFFICIENT_NOISE = 0.002
DRAWS = 1000
LEARNING_RATE = 0.01
STAGES = 25
QUANTITIES = ("epistemic", "aleatoric", "loss")
_AT_ONCE = 50  # seeds, so that the draws of predictions stay small


def powers(x: Tensor) -> Tensor:
    """(...,) → (..., P): 1, x, …, x⁵."""
    return x[..., None] ** torch.arange(DEGREE + 1, dtype=x.dtype)


def epistemic_variance(features: Tensor, generator: torch.Generator, draws: int = DRAWS) -> Tensor:
    """(S, N, P) → (S, N): variance of the predictions when the coefficients are shaken, over ``draws`` draws.

    Its expectation is 0.002² · Σ_p x^{2p}, wherever the coefficients are.
    """
    shaken_SRP = COEFFICIENT_NOISE * torch.randn(
        features.shape[0], draws, features.shape[-1], generator=generator, dtype=features.dtype
    )
    return torch.einsum("srp,snp->snr", shaken_SRP, features).var(-1)


def correlations(seeds: int, generator: torch.Generator, scales_G: Tensor) -> dict[str, Tensor]:
    """Spearman correlations (S, G) of each quantity with the drop of the validation error."""
    true_SP = torch.randn(seeds, DEGREE + 1, generator=generator, dtype=torch.float64)
    x_SN = 2 * torch.rand(seeds, DATA, generator=generator, dtype=torch.float64) - 1
    features_SNP = powers(x_SN)
    sd_SN = NOISE * torch.rand(seeds, DATA, generator=generator, dtype=torch.float64)
    noise_SN = sd_SN * torch.randn(seeds, DATA, generator=generator, dtype=torch.float64)
    y_SN = torch.einsum("snp,sp->sn", features_SNP, true_SP) + noise_SN
    epistemic_SN = epistemic_variance(features_SNP, generator)
    validation_VP = powers(torch.linspace(-1, 1, VALIDATION, dtype=torch.float64))
    second_PP = validation_VP.T @ validation_VP / VALIDATION

    displaced_SGP = scales_G[:, None] * torch.randn(
        seeds, len(scales_G), DEGREE + 1, generator=generator, dtype=torch.float64
    )
    now_SGP = true_SP[:, None] + displaced_SGP
    residual_SGN = torch.einsum("snp,sgp->sgn", features_SNP, now_SGP) - y_SN[:, None]
    # the step on a datum: the gradient of half its squared error
    after_SGNP = displaced_SGP[:, :, None] - LEARNING_RATE * residual_SGN[..., None] * features_SNP[:, None]
    before_SG1 = torch.einsum("sgp,pq,sgq->sg", displaced_SGP, second_PP, displaced_SGP)[..., None]
    drop_SGN = before_SG1 - torch.einsum("sgnp,pq,sgnq->sgn", after_SGNP, second_PP, after_SGNP)
    given = {"epistemic": epistemic_SN[:, None], "aleatoric": sd_SN[:, None], "loss": residual_SGN.square()}
    return {name: spearman(value.expand_as(drop_SGN), drop_SGN) for name, value in given.items()}


def spearman(a: Tensor, b: Tensor) -> Tensor:
    """Spearman's correlation over the last dimension, of values without ties."""
    ranks = [value.argsort(-1).argsort(-1).double() for value in (a, b)]
    x, y = (rank - rank.mean(-1, keepdim=True) for rank in ranks)
    return (x * y).sum(-1) / (x.square().sum(-1) * y.square().sum(-1)).sqrt()


def run(seeds: int, seed: int, small: bool, data: str | None, progress: Progress) -> Study:
    """Fig. 2C over ``seeds`` random polynomials."""
    generator = torch.Generator().manual_seed(seed)
    scales_G = torch.logspace(-3, 0, 7 if small else STAGES, dtype=torch.float64)
    parts: list[dict[str, Tensor]] = []
    for start in range(0, seeds, _AT_ONCE):
        progress("polynomials", start, seeds)
        parts.append(correlations(min(_AT_ONCE, seeds - start), generator, scales_G))
    progress("polynomials", seeds, seeds)
    found = {name: torch.cat([part[name] for part in parts]).numpy() for name in QUANTITIES}
    scales = [float(scale) for scale in scales_G]
    lines = tuple(Line(name, scales, found[name]) for name in QUANTITIES)
    far, near = -1, 0
    findings = (
        Finding(
            "C2",
            "far from the optimum, high-epistemic data help most",
            "correlation of epistemic uncertainty with the drop of the validation error, displacement 1",
            over_seeds(found["epistemic"][:, far]),
            "above",
        ),
        Finding(
            "C2",
            "far from the optimum, epistemic uncertainty matters more than aleatoric",
            "difference of the sizes of the two correlations, displacement 1",
            over_seeds(np.abs(found["epistemic"][:, far]) - np.abs(found["aleatoric"][:, far])),
            "above",
        ),
        Finding(
            "C2",
            "near the optimum, high-epistemic data can hurt",
            "correlation of epistemic uncertainty with the drop, displacement 0.001",
            over_seeds(found["epistemic"][:, near]),
            "below",
        ),
        Finding(
            "C2",
            "near the optimum, high-aleatoric data hurt",
            "correlation of aleatoric uncertainty with the drop, displacement 0.001",
            over_seeds(found["aleatoric"][:, near]),
            "below",
        ),
    )
    rows = tuple(
        {"seed": index, "displacement": scale, **{name: float(found[name][index, stage]) for name in QUANTITIES}}
        for index in range(seeds)
        for stage, scale in enumerate(scales)
    )
    return Study(
        "polynomial",
        "Which data to train on, near the optimum and far from it",
        "A polynomial of degree 5, 20 data with known noise. Far from the optimum the data to train on are those the "
        "model is uncertain about; near it, those with little noise (Fig. 2C, C.1.1).",
        {"polynomials": str(seeds), "stages": str(len(scales)), "seed": str(seed)},
        findings,
        (
            Drawing(
                "fig2c",
                "Which uncertainty says what helps: Spearman correlation with the drop of the validation error.",
                (Panel("Fig. 2C", "displacement of the coefficients", "correlation", lines, log_x=True),),
            ),
        ),
        rows,
    )
