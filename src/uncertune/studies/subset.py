"""Fig. 11 (C.1): least squares Z w = d, a gradient step on K of N data, chosen by residual, exhaustively, or at random.

The optimum of eq. 5 is the subset whose step gives the lowest training loss,

    argmin_S ½‖(I − λ Z Zᵀ I_S) ε‖²,    ε = Z w − d,

found over all (N choose K) subsets. If Z Zᵀ = I it is the top K of |ε|: the step scales the chosen residuals.

Shape legend: ``S`` seeds, ``N`` data, ``D`` parameters, ``C`` subsets of K of N, ``H`` held-out data.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from uncertune.selection import select
from uncertune.statistics.findings import Finding
from uncertune.statistics.intervals import Estimate, over_seeds
from uncertune.studies.study import Answer, Array, Drawing, Line, Panel, Progress, Row, Study

N, K = 16, 4
HELD_OUT = 200
NOISE = 0.1
NEAR = 0.8
"""Share of the optimum's advantage over random from which a method counts as near the optimum."""
KINDS = ("correlated", "independent", "whitened")
METHODS = ("full gradient", "top-K residual", "exhaustive optimum", "random")


@dataclass(frozen=True)
class Problem:
    """``Z`` (S, N, D) and ``d`` (S, N) to train on, ``Z_held`` (S, H, D) and ``d_held`` (S, H) to test on."""

    z_SND: Tensor
    d_SN: Tensor
    held_SHD: Tensor
    d_SH: Tensor


def subsets(n: int, k: int) -> Tensor:
    """(C, n) float64: the indicator of every subset of ``k`` of ``n``."""
    chosen = torch.tensor(list(itertools.combinations(range(n), k)))
    return torch.zeros(len(chosen), n, dtype=torch.float64).scatter_(1, chosen, 1.0)


def exhaustive_optimum(gram_SNN: Tensor, residual_SN: Tensor, rate_S: Tensor, subsets_CN: Tensor) -> Tensor:
    """The indicator (S, N) of the subset whose gradient step gives the lowest training loss (eq. 5).

    ½‖ε − λ G I_S ε‖² = ½‖ε‖² − λ 1_Sᵀ(ε ∘ Gε) + ½λ² 1_Sᵀ (diag(ε) G² diag(ε)) 1_S, a quadratic form in 1_S.
    """
    linear_SN = residual_SN * torch.einsum("snm,sm->sn", gram_SNN, residual_SN)
    quadratic_SNN = residual_SN[:, :, None] * (gram_SNN @ gram_SNN) * residual_SN[:, None, :]
    square_SC = ((subsets_CN @ quadratic_SNN) * subsets_CN).sum(-1)
    loss_SC = 0.5 * rate_S[:, None] * square_SC - linear_SN @ subsets_CN.T  # over λ
    return subsets_CN[loss_SC.argmin(1)]


def top_k(residual_SN: Tensor, k: int) -> Tensor:
    """The indicator (S, N) of the ``k`` largest |ε|, by ``uncertune.selection``."""
    n = residual_SN.shape[1]
    return torch.stack([select(row.abs(), f"{k}/{n}") for row in residual_SN]).double()


def problems(seeds: int, kind: str, generator: torch.Generator) -> Problem:
    """Random systems. ``whitened``: Z Zᵀ = I, as many parameters as data; ``independent``: normal entries, half as many
    parameters; ``correlated``: the same, with a correlation of 0.8 between neighbouring data."""
    dimension = N if kind == "whitened" else N // 2

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    weights_SD = normal(seeds, dimension)
    rows_SHD = normal(seeds, N + HELD_OUT, dimension)
    if kind == "correlated":
        for row in range(1, rows_SHD.shape[1]):
            rows_SHD[:, row] = 0.8 * rows_SHD[:, row - 1] + 0.6 * rows_SHD[:, row]
    z_SND, held_SHD = rows_SHD[:, :N], rows_SHD[:, N:]
    if kind == "whitened":
        z_SND = torch.linalg.qr(z_SND.transpose(1, 2))[0].transpose(1, 2)
        held_SHD = held_SHD / dimension**0.5
    d_SN = torch.einsum("snd,sd->sn", z_SND, weights_SD) + NOISE * normal(seeds, N)
    d_SH = torch.einsum("shd,sd->sh", held_SHD, weights_SD)
    return Problem(z_SND, d_SN, held_SHD, d_SH)


def descend(
    problem: Problem, method: str, steps: int, generator: torch.Generator, after: Callable[[], None] = lambda: None
) -> Tensor:
    """Held-out loss (S, steps + 1) of gradient descent from zero with the data that ``method`` chooses at each step.

    The rate of a system is ½ / ‖Z Zᵀ‖. ``after`` is called after a step.
    """
    z = problem.z_SND
    gram = z @ z.transpose(1, 2)
    rate_S = 0.5 / torch.linalg.matrix_norm(gram, 2)
    choices = subsets(N, K)
    w_SD = z.new_zeros(z.shape[0], z.shape[2])
    losses = [_held_out(problem, w_SD)]
    for _ in range(steps):
        residual = torch.einsum("snd,sd->sn", z, w_SD) - problem.d_SN
        if method == "full gradient":
            mask = torch.ones_like(residual)
        elif method == "top-K residual":
            mask = top_k(residual, K)
        elif method == "exhaustive optimum":
            mask = exhaustive_optimum(gram, residual, rate_S, choices)
        else:
            draw = torch.randint(len(choices), (len(residual),), generator=generator)
            mask = choices[draw]
        w_SD = w_SD - rate_S[:, None] * torch.einsum("snd,sn->sd", z, mask * residual)
        losses.append(_held_out(problem, w_SD))
        after()
    return torch.stack(losses, 1)


def _held_out(problem: Problem, w_SD: Tensor) -> Tensor:
    return 0.5 * (torch.einsum("shd,sd->sh", problem.held_SHD, w_SD) - problem.d_SH).square().mean(1)


def run(seeds: int, seed: int, small: bool, data: str | None, progress: Progress) -> Study:
    """Fig. 11 over ``seeds`` random systems of each kind."""
    steps = 60 if small else 200
    total = len(KINDS) * len(METHODS) * steps
    done = itertools.count(1)
    answers = []
    for number, kind in enumerate(KINDS):
        generator = torch.Generator().manual_seed(seed + number)
        problem = problems(seeds, kind, generator)
        found = {
            method: descend(problem, method, steps, generator, lambda: progress("steps", next(done), total)).numpy()
            for method in METHODS
        }
        rows: list[Row] = [
            {"kind": kind, "seed": one, "step": step, **{method: float(found[method][one, step]) for method in METHODS}}
            for one in range(seeds)
            for step in range(steps + 1)
        ]
        answers.append(Answer(_findings(kind, found), (), (_drawing(kind, found, steps),), tuple(rows)))
    return Study(
        "subset",
        "Which data to step on, in least squares",
        f"Gradient descent on Zw = d with {K} of {N} data a step. Choosing those of largest residual is exactly the "
        "greedy optimum where the data are whitened, and is compared with it elsewhere (Fig. 11, C.1).",
        {"systems of each kind": str(seeds), "steps": str(steps), "N": str(N), "K": str(K), "seed": str(seed)},
        Answer.joined(answers),
    )


def _drawing(kind: str, found: dict[str, Array], steps: int) -> Drawing:
    by_step = tuple(Line(method, range(steps + 1), found[method]) for method in METHODS)
    by_datum = tuple(
        Line(method, _data(method, steps)[: _shown(method, steps)], found[method][:, : _shown(method, steps)])
        for method in METHODS
    )
    return Drawing(
        f"fig11-{kind}",
        f"Training on {K} of {N} data a step, {kind} data.",
        (
            Panel("Fig. 11, by step", "step", "held-out loss", by_step, log_y=True),
            Panel("by datum", "data trained on", "held-out loss", by_datum, log_y=True),
        ),
    )


def _data(method: str, steps: int) -> list[float]:
    return [step * (N if method == "full gradient" else K) for step in range(steps + 1)]


def _shown(method: str, steps: int) -> int:
    """Points with at most as many data as all steps of the subset methods take."""
    return steps * K // N + 1 if method == "full gradient" else steps + 1


def _findings(kind: str, found: dict[str, Array]) -> tuple[Finding, ...]:
    """C7, on the mean over steps of the logarithm of the held-out loss: the area under the curve as drawn."""
    log = {method: np.log(values) for method, values in found.items()}
    top, best, chance = (log[method].mean(1) for method in METHODS[1:])
    points = _shown("full gradient", found["random"].shape[1] - 1)
    full = log["full gradient"][:, :points].mean(1)
    same_data = {method: log[method][:, :: N // K][:, :points].mean(1) for method in METHODS[1:]}
    by_step, by_datum = "log held-out loss, mean over steps", "log held-out loss at the same number of data"
    return (
        Finding("C7", f"{kind}: top-K residual beats random", f"{by_step}: random minus top-K",
                over_seeds(chance - top), "above"),
        Finding("C7", f"{kind}: top-K residual comes near the exhaustive optimum",
                "share that top-K has of the optimum's advantage over random", _share(chance - top, chance - best),
                "above", NEAR),
        Finding("C7", f"{kind}: per datum trained on, top-K residual beats the full gradient",
                f"{by_datum}: full minus top-K", over_seeds(full - same_data["top-K residual"]), "above"),
        Finding("C7", f"{kind}: per datum trained on, the exhaustive optimum beats the full gradient",
                f"{by_datum}: full minus optimum", over_seeds(full - same_data["exhaustive optimum"]), "above"),
        Finding("C7", f"{kind}: per datum trained on, top-K residual beats random",
                f"{by_datum}: random minus top-K", over_seeds(same_data["random"] - same_data["top-K residual"]),
                "above"),
    )  # fmt: skip


def _share(top: Array, best: Array) -> Estimate:
    """mean(top) / mean(best), its interval by the delta method over seeds."""
    ratio = top.mean() / best.mean()
    return over_seeds((top - ratio * best) / best.mean() + ratio)
