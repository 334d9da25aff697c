"""Fig. 12 (C.2): a small network on handwritten digits, trained on one tenth of each batch by loss; and claim C2b.

784-32-16-10, ReLU, SGD at 0.01, batches of 256, 20 epochs; each batch is ranked by loss and split into ten equal parts;
a run trains on one of them. All runs are one batch of models. ``--data digits`` takes scikit-learn's smaller digits.

C2b (§3): the models trained on everything, one per seed, are an ensemble; at several moments of their training the
uncertainties of single data are correlated with the decrease of the test loss by a step on each.

Shape legend: ``S`` seeds, ``Q`` runs of a seed (ten parts, and all data), ``M = S · PARTS`` models, ``B`` batch,
``K`` data of a part, ``N`` data, ``E`` moments.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from uncertune.errors import UserError
from uncertune.objectives import OBJECTIVES, Head, weighted_nll
from uncertune.statistics.findings import Finding
from uncertune.statistics.intervals import over_seeds
from uncertune.studies.correlation import spearman
from uncertune.studies.digits import Digits, load
from uncertune.studies.stacked import Stacked
from uncertune.studies.study import Answer, Array, Drawing, Grid, Line, Panel, Progress, Row, Study
from uncertune.uncertainty.bald import Logits, StreamedSums

PARTS = 10
BATCH = 256
LEARNING_RATE = 0.01
PROBED, PROBE_TEST = 300, 1000
"""C2b: the number of data with a step each, and of data for the test loss."""
NAMES = (*(f"{10 * part}–{10 * part + 10} %" for part in range(PARTS)), "all data")
MARGIN = 0.02
SMALL = ", small step"
State = dict[str, Tensor]


def network(pixels: int) -> nn.Module:
    """The paper's network: two hidden layers of 32 and 16, ReLU."""
    return nn.Sequential(nn.Linear(pixels, 32), nn.ReLU(), nn.Linear(32, 16), nn.ReLU(), nn.Linear(16, 10))


def losses(logits: Tensor, labels: Tensor) -> Tensor:
    """(M, B, 10) logits and (M, B) labels → (M, B) cross-entropies, by ``weighted_nll``."""
    flat = weighted_nll(logits.flatten(0, 1), OBJECTIVES["mle"](labels.flatten()))
    return flat.view(labels.shape)


def parts_of(loss_MB: Tensor, part_M: Tensor) -> Tensor:
    """(M, K) indices of the data in each model's part of the batch: part 0 has the lowest losses, 9 the highest."""
    size = loss_MB.shape[1] // PARTS
    order_MB = loss_MB.argsort(dim=1, stable=True)
    # the first part starts at the lowest loss, the last ends at the highest, the others are evenly between
    starts_M = (part_M * (loss_MB.shape[1] - size)).div(PARTS - 1, rounding_mode="floor")
    return order_MB.gather(1, starts_M[:, None] + torch.arange(size))


class Runs:
    """All runs of all seeds: ``everything`` are the S models on all data, ``tenths`` the M on a part of each batch."""

    def __init__(self, pixels: int, seeds: int, seed: int) -> None:
        models = Stacked(lambda: network(pixels), range(seed, seed + seeds))
        self.everything = models.copy()
        self.tenths = models.repeated(PARTS)
        self.part_M = torch.arange(PARTS).repeat(seeds)
        self.seed_M = torch.arange(seeds).repeat_interleave(PARTS)

    def step(self, x_SB: Tensor, y_SB: Tensor) -> None:
        """One step of every run on its seed's batch."""
        _descend(self.everything, x_SB, y_SB)
        with torch.no_grad():
            loss_MB = losses(_shared(self.tenths, x_SB), y_SB[self.seed_M])
        chosen_MK = parts_of(loss_MB, self.part_M)
        _descend(self.tenths, x_SB[self.seed_M[:, None], chosen_MK], y_SB[self.seed_M[:, None], chosen_MK])

    @torch.no_grad()
    def accuracy(self, digits: Digits) -> Tensor:
        """(S, Q) accuracy on the test data, float64."""
        seeds = len(self.part_M) // PARTS
        test = digits.test.expand(seeds, -1, -1)
        everything = (self.everything(test).argmax(-1) == digits.test_labels).double().mean(-1)
        tenths = [
            (self.tenths(digits.test.expand(PARTS, -1, -1), state).argmax(-1) == digits.test_labels).double().mean(-1)
            for state in (_part(self.tenths, slice(one * PARTS, (one + 1) * PARTS)) for one in range(seeds))
        ]
        return torch.cat([torch.stack(tenths), everything[:, None]], 1)


def train(digits: Digits, seeds: int, seed: int, epochs: int, progress: Progress) -> tuple[Tensor, dict[int, State]]:
    """Test accuracy (S, Q, epochs + 1), and the parameters of the runs on all data after some steps, for C2b.

    The last batch of an epoch has the remaining data, and is dropped if it has fewer than one datum per part.
    """
    generator = torch.Generator().manual_seed(seed)
    runs = Runs(digits.train.shape[1], seeds, seed)
    count = len(digits.train)
    starts = range(0, count - PARTS + 1, BATCH)
    moments = {0, 10, 30, 100, 300, len(starts), 5 * len(starts), epochs * len(starts)}
    kept: dict[int, State] = {0: _part(runs.everything, slice(None))}
    accuracy = [runs.accuracy(digits)]
    step = 0
    for _ in range(epochs):
        order_SN = torch.stack([torch.randperm(count, generator=generator) for _ in range(seeds)])
        for start in starts:
            index_SB = order_SN[:, start : start + BATCH]
            runs.step(digits.train[index_SB], digits.train_labels[index_SB])
            step += 1
            progress("steps", step, epochs * len(starts))
            if step in moments:
                kept[step] = _part(runs.everything, slice(None))
        accuracy.append(runs.accuracy(digits))
    return torch.stack(accuracy, -1), kept


def _part(models: Stacked, which: slice) -> State:
    return {name: value.detach()[which].clone() for name, value in models.parameters.items()}


def _shared(models: Stacked, x_SB: Tensor) -> Tensor:
    """The outputs (M, B, 10) of models that share a batch by tens: the first layer is one product per seed."""
    groups = len(x_SB)
    state = {name: value.view(groups, PARTS, *value.shape[1:]) for name, value in models.parameters.items()}

    def one(parameters: dict[str, Tensor], x: Tensor) -> Tensor:
        return torch.func.functional_call(models.base, parameters, (x,))

    per_seed = torch.func.vmap(one, in_dims=(0, None))
    return torch.func.vmap(per_seed)(state, x_SB).flatten(0, 1)


def _descend(models: Stacked, x: Tensor, y: Tensor) -> None:
    """One step of SGD on the mean loss of each model's data."""
    total = losses(models(x), y).mean(1).sum()
    gradients = torch.autograd.grad(total, list(models.parameters.values()))
    with torch.no_grad():
        for parameter, gradient in zip(models.parameters.values(), gradients, strict=True):
            parameter -= LEARNING_RATE * gradient


def probe(digits: Digits, state: State) -> dict[str, Tensor]:
    """C2b at one moment: Spearman correlations (S,) of each uncertainty of ``PROBED`` data with the decrease of the
    test loss by a step on each alone, and, under ``NAME, small step``, by an infinitesimal step. The S models are the
    ensemble for the uncertainties."""
    base = network(digits.train.shape[1])
    x, y = digits.train[:PROBED], digits.train_labels[:PROBED]
    sums, identity = StreamedSums(), Logits.of(Head(torch.eye(10)), like=torch.zeros(1))
    drops, slopes, own = [], [], []
    for index in range(len(next(iter(state.values())))):
        mine = {name: value[index] for name, value in state.items()}
        with torch.no_grad():
            logits = torch.func.functional_call(base, mine, (x,))
        sums.add(logits, identity)
        own.append(torch.nn.functional.cross_entropy(logits, y, reduction="none"))
        drop_N, slope_N = single_steps(base, mine, digits)
        drops.append(drop_N)
        slopes.append(slope_N)
    found = sums.finish()
    given = {"epistemic": found.epistemic, "aleatoric": found.aleatoric, "loss": torch.stack(own).double()}
    out = {name: spearman(value, torch.stack(drops).double()) for name, value in given.items()}
    return out | {f"{name}{SMALL}": spearman(value, torch.stack(slopes).double()) for name, value in given.items()}


def single_steps(base: nn.Module, state: State, digits: Digits) -> tuple[Tensor, Tensor]:
    """(N,) each: the decrease of the loss on ``PROBE_TEST`` test data by a step on each of the ``PROBED`` data alone,
    and its slope at a rate of 0, the product of the two gradients."""
    x, y = digits.train[:PROBED], digits.train_labels[:PROBED]
    test, test_y = digits.test[:PROBE_TEST], digits.test_labels[:PROBE_TEST]

    def loss(parameters: State, images: Tensor, labels: Tensor) -> Tensor:
        logits = torch.func.functional_call(base, parameters, (images,))
        return torch.nn.functional.cross_entropy(logits, labels)

    gradients = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0, 0))(state, x[:, None], y[:, None])
    towards = torch.func.grad(loss)(state, test, test_y)
    slope_N = torch.stack([(gradients[name].flatten(1) @ towards[name].flatten()) for name in state]).sum(0)
    after = {name: state[name] - LEARNING_RATE * gradients[name] for name in state}
    with torch.no_grad():
        measured = torch.func.vmap(loss, in_dims=(0, None, None), chunk_size=50)(after, test, test_y)
        return loss(state, test, test_y) - measured, slope_N


def run(seeds: int, seed: int, small: bool, data: str | None, progress: Progress) -> Study:
    """Fig. 12 and C2b over ``seeds`` initialisations and orders."""
    if seeds < 2:
        raise UserError(f"seeds: {seeds} is too few: study mnist needs an ensemble of at least 2 models")
    digits = load(data)
    epochs = 3 if small else 20
    accuracy_SQE, kept = train(digits, seeds, seed, epochs, progress)
    found = accuracy_SQE.numpy()
    moments = sorted(kept)
    probes = []
    for number, step in enumerate(moments):
        progress("single data (C2b)", number, len(moments))
        probes.append(probe(digits, kept[step]))
    progress("single data (C2b)", len(moments), len(moments))
    by_step = {name: np.stack([one[name].numpy() for one in probes], 1) for name in probes[0]}
    rows: list[Row] = [
        {"run": name, "seed": s, "epoch": epoch, "test_accuracy": float(found[s, index, epoch])}
        for index, name in enumerate(NAMES)
        for s in range(seeds)
        for epoch in range(epochs + 1)
    ]
    rows += [
        {"run": f"C2b {name}", "seed": s, "step": step, "correlation": float(values[s, place])}
        for name, values in by_step.items()
        for s in range(seeds)
        for place, step in enumerate(moments)
    ]
    table = Grid(
        f"Test accuracy on {digits.name}",
        "trained on",
        tuple(f"after {epoch} epochs" for epoch in _epochs(epochs)),
        tuple(
            (name, tuple(over_seeds(found[:, index, epoch]) for epoch in _epochs(epochs)))
            for index, name in enumerate(NAMES)
        ),
    )
    return Study(
        "mnist",
        f"Which tenth of a batch to train on: {digits.name}",
        "A network with two hidden layers sees one tenth of each batch, by loss. The paper finds that the accuracy "
        "rises with the tenth (Fig. 12, C.2).",
        {"data": digits.name, "seeds": str(seeds), "epochs": str(epochs), "seed": str(seed)},
        Answer(_findings(found, by_step), (table,), _drawings(digits.name, found, moments, by_step), tuple(rows)),
    )


def _epochs(epochs: int) -> list[int]:
    """The epochs in the table."""
    return [one for one in (1, 5) if one < epochs] + [epochs]


def _drawings(data: str, accuracy_SQE: Array, moments: list[int], by_step: dict[str, Array]) -> tuple[Drawing, Drawing]:
    lines = tuple(Line(name, range(accuracy_SQE.shape[-1]), accuracy_SQE[:, i]) for i, name in enumerate(NAMES))
    tenths = Panel("Fig. 12, tenths of the batch by loss", "epoch", "test accuracy", lines[:PARTS], ramp=True)
    ends = Panel("easiest, hardest, all", "epoch", "test accuracy", (lines[0], lines[PARTS - 1], lines[PARTS]))
    steps = [max(step, 1) for step in moments]  # on a logarithmic axis
    c2b = [
        Panel(
            title,
            "step of training (0 is drawn at 1)",
            "correlation with the drop of test loss",
            tuple(Line(name, steps, by_step[name + suffix]) for name in ("epistemic", "aleatoric", "loss")),
            log_x=True,
        )
        for title, suffix in (("C2b, at the training's rate", ""), ("at a rate of 0", SMALL))
    ]
    return (
        Drawing("fig12", f"Trained on one tenth of each batch, by loss: {data}.", (tenths, ends)),
        Drawing("c2b", f"What a step on one datum brings, by its uncertainty: {data}.", tuple(c2b)),
    )


def _findings(accuracy_SQE: Array, by_step: dict[str, Array]) -> tuple[Finding, ...]:
    last = torch.from_numpy(accuracy_SQE[:, :PARTS, -1].copy())
    hardest, easiest, everything = (accuracy_SQE[:, index, -1] for index in (PARTS - 1, 0, PARTS))
    early, late = 0, -1
    drop = "uncertainty with the drop of the test loss"
    return (
        Finding("C8", "accuracy rises with the loss quantile trained on",
                "Spearman correlation of the tenth with the final test accuracy",
                over_seeds(spearman(torch.arange(PARTS), last).numpy()), "above"),
        Finding("C8", "it rises almost monotonically",
                "share of the nine steps from one tenth to the next at which the final test accuracy rises",
                over_seeds((last.diff(dim=1) > 0).double().mean(1).numpy()), "above", 0.8),
        Finding("C8", "the hardest tenth is better than the easiest",
                "difference of the final test accuracy", over_seeds(hardest - easiest), "above"),
        Finding("C8", f"the hardest tenth is as good as all data, to {MARGIN:g}",
                "difference of the final test accuracy", over_seeds(hardest - everything), "above", -MARGIN),
        Finding("C2b", "early, low-aleatoric data are best",
                f"correlation of aleatoric {drop}, before the first step",
                over_seeds(by_step["aleatoric"][:, early]), "below"),
        Finding("C2b", "later, high-epistemic data are best",
                f"correlation of epistemic {drop}, after the last step",
                over_seeds(by_step["epistemic"][:, late]), "above"),
        Finding("C2b", "later, high-epistemic data are best, where no step overshoots",
                f"correlation of epistemic {drop} at a rate of 0, after the last step",
                over_seeds(by_step[f"epistemic{SMALL}"][:, late]), "above"),
        Finding("C2b", "later, epistemic uncertainty matters more than aleatoric",
                f"correlation of epistemic minus that of aleatoric {drop}, after the last step",
                over_seeds(by_step["epistemic"][:, late] - by_step["aleatoric"][:, late]), "above"),
    )  # fmt: skip
