"""Fig. 12 (C.2): a small network on handwritten digits, trained on one tenth of each batch, by loss; and C2b beside it.

784-32-16-10, ReLU, SGD at 0.01, batches of 256, 20 epochs; within each batch the data are ranked by their loss and cut
into ten equal parts; a run trains on one of them. All runs are one batch of models. Offline and without MNIST's files
the digits that scikit-learn carries (8 × 8, 1797) stand in for it.

C2b (§3): ten models trained on everything are an ensemble; at several moments of their training the uncertainties of
single data are correlated with how much a step on each lowers the test loss.

Shape legend: ``S`` seeds, ``Q`` runs of a seed (ten parts, and all data), ``M = S · Q`` models, ``B`` batch,
``N`` data.
"""

from __future__ import annotations

import gzip
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from uncertune.errors import UserError
from uncertune.intervals import over_seeds
from uncertune.objectives import OBJECTIVES, weighted_nll
from uncertune.studies.polynomial import spearman
from uncertune.studies.stacked import Stacked
from uncertune.studies.study import Drawing, Finding, Line, Panel, Progress, Study
from uncertune.uncertainty.bald import Logits, StreamedSums

PARTS = 10
BATCH = 256
LEARNING_RATE = 0.01
FILES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")
PROBED, PROBE_TEST = 300, 1000
"""C2b: how many data are stepped on one by one, and how many the test loss is measured on."""


@dataclass(frozen=True)
class Digits:
    """Images (N, pixels) in [0, 1] less their mean, over their deviation, and labels (N,)."""

    name: str
    train: Tensor
    train_labels: Tensor
    test: Tensor
    test_labels: Tensor


def load(data: str | None) -> Digits:
    """``data``: a folder with MNIST's four files (or ``mnist/`` in it), ``hub`` (ylecun/mnist), ``digits`` (those of
    scikit-learn), or None: the folder $UNCERTUNE_DATA where that has them, else ``digits``.

    Raises UserError where what was named cannot be had.
    """
    if data == "hub":
        return _hub()
    if data not in (None, "digits"):
        found = _files(Path(str(data)))
        if found is None:
            raise UserError(f"data: {data} has no MNIST: put {FILES[0]}.gz and its three companions there")
        return _digits("MNIST", *map(_idx, found))
    folder = os.environ.get("UNCERTUNE_DATA")
    found = _files(Path(folder)) if folder and data is None else None
    return _digits("MNIST", *map(_idx, found)) if found else _bundled()


def _files(folder: Path) -> list[Path] | None:
    """The four files, packed or not, in ``folder`` or its ``mnist``; None unless all are there."""
    for place in (folder / "mnist", folder):
        found = [next((p for p in (place / f"{n}.gz", place / n) if p.is_file()), None) for n in FILES]
        if None not in found:
            return [path for path in found if path is not None]
    return None


def _hub() -> Digits:
    from datasets import load_dataset

    try:
        parts = [load_dataset("ylecun/mnist", split=split).with_format("torch") for split in ("train", "test")]
    except Exception as error:  # whatever datasets or the hub raises
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"data: ylecun/mnist cannot be had from the hub ({reason}); name a folder") from error
    arrays = [part[:][column] for part in parts for column in ("image", "label")]
    return _digits("MNIST", *arrays)


def _idx(path: Path) -> Tensor:
    """One file of the IDX format: two zero bytes, the type 8 (unsigned byte), the number of dimensions, each's size."""
    content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    if content[:3] != b"\x00\x00\x08":
        raise UserError(f"data: {path} is not an IDX file of bytes: fetch it anew")
    dimensions = content[3]
    shape = [int.from_bytes(content[4 + 4 * i : 8 + 4 * i], "big") for i in range(dimensions)]
    values = np.frombuffer(content, np.uint8, offset=4 + 4 * dimensions)
    if len(values) != int(np.prod(shape)):
        raise UserError(f"data: {path} is cut short: fetch it anew")
    return torch.from_numpy(values.reshape(shape).copy())


def _bundled() -> Digits:
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise UserError(
            "data: no MNIST in --data or $UNCERTUNE_DATA, and scikit-learn, whose digits would stand in, is "
            'not installed: pip install "uncertune[studies]"'
        ) from None
    images, labels = load_digits(return_X_y=True)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    x, y = torch.from_numpy(images)[order] * (255 / 16), torch.from_numpy(labels)[order]
    return _digits("scikit-learn's digits", x[:1500], y[:1500], x[1500:], y[1500:])


def _digits(name: str, train: Tensor, train_labels: Tensor, test: Tensor, test_labels: Tensor) -> Digits:
    x, held = (images.reshape(len(images), -1).float() / 255 for images in (train, test))
    mean, deviation = x.mean(), x.std()
    return Digits(name, (x - mean) / deviation, train_labels.long(), (held - mean) / deviation, test_labels.long())


def network(pixels: int) -> nn.Module:
    """The paper's: two hidden layers of 32 and 16, ReLU."""
    return nn.Sequential(nn.Linear(pixels, 32), nn.ReLU(), nn.Linear(32, 16), nn.ReLU(), nn.Linear(16, 10))


def losses(logits: Tensor, labels: Tensor) -> Tensor:
    """(M, B, 10) and (M, B) → (M, B): cross-entropy, by the objectives' room."""
    flat = weighted_nll(logits.flatten(0, 1), OBJECTIVES["mle"](labels.flatten()))
    return flat.view(labels.shape)


def parts_of(loss_MB: Tensor, part_M: Tensor) -> Tensor:
    """(M, K) indices of the data in each model's part of the batch: part 0 has the lowest losses, 9 the highest."""
    size = loss_MB.shape[1] // PARTS
    order_MB = loss_MB.argsort(dim=1, stable=True)
    # the last part ends at the highest loss, the first begins at the lowest, the others lie evenly between
    starts_M = (part_M * (loss_MB.shape[1] - size)).div(PARTS - 1, rounding_mode="floor")
    return order_MB.gather(1, starts_M[:, None] + torch.arange(size))


def train(
    digits: Digits, seeds: int, seed: int, epochs: int, progress: Progress
) -> tuple[Tensor, dict[int, dict[str, Tensor]]]:
    """Test accuracy (S, Q, epochs + 1), and the parameters of the runs on all data after some steps, for C2b."""
    generator = torch.Generator().manual_seed(seed)
    models = Stacked(lambda: network(digits.train.shape[1]), range(seed, seed + seeds))
    everything = models.copy()
    tenths = models.repeated(PARTS)
    part_M = torch.arange(PARTS).repeat(seeds)
    count = len(digits.train)
    batches = max(1, count // BATCH)
    moments = {0, 10, 30, 100, 300, batches, 5 * batches, epochs * batches}
    kept: dict[int, dict[str, Tensor]] = {}
    accuracy: list[Tensor] = []

    def measure() -> None:
        with torch.no_grad():
            test = digits.test.expand(seeds, -1, -1)
            right = [(everything(test).argmax(-1) == digits.test_labels).double().mean(-1)[:, None]]
            for start in range(0, seeds * PARTS, PARTS):
                state = {name: value[start : start + PARTS] for name, value in tenths.parameters.items()}
                out = tenths(digits.test.expand(PARTS, -1, -1), state).argmax(-1)
                right.append((out == digits.test_labels).double().mean(-1)[None])
        accuracy.append(torch.cat([torch.cat(right[1:]), right[0]], 1))

    def keep(step: int) -> None:
        if step in moments:
            kept[step] = {name: value.detach().clone() for name, value in everything.parameters.items()}

    measure()
    keep(0)
    step = 0
    for epoch in range(epochs):
        progress("epochs", epoch, epochs)
        order_SN = torch.stack([torch.randperm(count, generator=generator) for _ in range(seeds)])
        for start in range(0, batches * BATCH, BATCH):
            index_SB = order_SN[:, start : start + BATCH]
            x_SB, y_SB = digits.train[index_SB], digits.train_labels[index_SB]
            _descend(everything, x_SB, y_SB)
            x_MB, y_MB = x_SB.repeat_interleave(PARTS, 0), y_SB.repeat_interleave(PARTS, 0)
            with torch.no_grad():
                chosen_MK = parts_of(losses(_shared(tenths, x_SB), y_MB), part_M)
            x_MK = x_MB.gather(1, chosen_MK[..., None].expand(-1, -1, x_MB.shape[-1]))
            _descend(tenths, x_MK, y_MB.gather(1, chosen_MK))
            step += 1
            keep(step)
        measure()
    progress("epochs", epochs, epochs)
    return torch.stack(accuracy, -1), kept


def _shared(models: Stacked, x_SB: Tensor) -> Tensor:
    """The outputs (M, B, 10) of models that see the same batch ten by ten: the first layer as one product a seed."""
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


def probe(digits: Digits, state: dict[str, Tensor], pixels: int) -> dict[str, Tensor]:
    """C2b at one moment: Spearman correlations (S,) of each uncertainty of ``PROBED`` data with what a step on one of
    them alone lowers the test loss by. The S models are the ensemble that says how uncertain a datum is."""
    base = network(pixels)
    x, y = digits.train[:PROBED], digits.train_labels[:PROBED]
    test, test_y = digits.test[:PROBE_TEST], digits.test_labels[:PROBE_TEST]

    def loss(parameters: dict[str, Tensor], images: Tensor, labels: Tensor) -> Tensor:
        logits = torch.func.functional_call(base, parameters, (images,))
        return torch.nn.functional.cross_entropy(logits, labels)

    one_by_one = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0, 0))
    sums = StreamedSums()
    identity = Logits.of(torch.eye(10), like=torch.zeros(1))
    drops, own = [], []
    seeds = len(next(iter(state.values())))
    for index in range(seeds):
        mine = {name: value[index] for name, value in state.items()}
        with torch.no_grad():
            logits = torch.func.functional_call(base, mine, (x,))
            sums.add(logits, identity)
            own.append(torch.nn.functional.cross_entropy(logits, y, reduction="none"))
            before = loss(mine, test, test_y)
        gradients = one_by_one(mine, x[:, None], y[:, None])
        after = {name: mine[name] - LEARNING_RATE * gradients[name] for name in mine}
        with torch.no_grad():
            measured = [
                torch.func.vmap(loss, in_dims=(0, None, None))(
                    {name: value[start : start + 50] for name, value in after.items()}, test, test_y
                )
                for start in range(0, PROBED, 50)
            ]
        drops.append(before - torch.cat(measured))
    found = sums.finish()
    drop_SN = torch.stack(drops).double()
    given = {"epistemic": found.epistemic, "aleatoric": found.aleatoric, "loss": torch.stack(own).double()}
    return {name: spearman(value.expand_as(drop_SN), drop_SN) for name, value in given.items()}


def run(seeds: int, seed: int, small: bool, data: str | None, progress: Progress) -> Study:
    """Fig. 12 and C2b over ``seeds`` initialisations and orders."""
    if seeds < 2:
        raise UserError(f"seeds: {seeds} is too few: study mnist needs at least 2 models to tell what they disagree on")
    digits = load(data)
    epochs = 3 if small else 20
    accuracy_SQE, kept = train(digits, seeds, seed, epochs, progress)
    names = [f"{10 * part}–{10 * part + 10} %" for part in range(PARTS)] + ["all data"]
    found = accuracy_SQE.numpy()
    lines = tuple(Line(name, range(epochs + 1), found[:, index]) for index, name in enumerate(names))
    probes = {}
    for number, (step, state) in enumerate(sorted(kept.items())):
        progress("single data (C2b)", number, len(kept))
        probes[step] = probe(digits, state, digits.train.shape[1])
    progress("single data (C2b)", len(kept), len(kept))
    steps = [max(step, 1) for step in sorted(probes)]
    by_step = {
        name: np.stack([probes[step][name].numpy() for step in sorted(probes)], 1)
        for name in ("epistemic", "aleatoric", "loss")
    }
    rows: list[Mapping[str, float | str]] = [
        {"run": name, "seed": s, "epoch": epoch, "test_accuracy": float(found[s, index, epoch])}
        for index, name in enumerate(names)
        for s in range(seeds)
        for epoch in range(epochs + 1)
    ]
    rows += [
        {"run": f"C2b {name}", "seed": s, "step": step, "correlation": float(values[s, place])}
        for name, values in by_step.items()
        for s in range(seeds)
        for place, step in enumerate(sorted(probes))
    ]
    return Study(
        "mnist",
        f"Which tenth of a batch to train on: {digits.name}",
        "A network with two hidden layers sees one tenth of each batch, by loss. The paper finds that the accuracy "
        "rises with the tenth (Fig. 12, C.2).",
        {"data": digits.name, "seeds": str(seeds), "epochs": str(epochs), "seed": str(seed)},
        _findings(found, by_step),
        (
            Drawing(
                "fig12",
                f"Trained on one tenth of each batch, by loss: {digits.name}.",
                (
                    Panel("Fig. 12: tenths", "epoch", "test accuracy", lines[:PARTS], ramp=True),
                    Panel("highest, lowest, all", "epoch", "test accuracy", (lines[0], lines[PARTS - 1], lines[PARTS])),
                ),
            ),
            Drawing(
                "c2b",
                "What a step on one datum brings: Spearman correlation with the drop of the test loss.",
                (
                    Panel(
                        "C2b",
                        "step of training",
                        "correlation",
                        tuple(Line(name, steps, values) for name, values in by_step.items()),
                        log_x=True,
                    ),
                ),
            ),
        ),
        tuple(rows),
    )


def _findings(accuracy_SQE: np.ndarray, by_step: dict[str, np.ndarray]) -> tuple[Finding, ...]:
    last = torch.from_numpy(accuracy_SQE[:, :PARTS, -1].copy())
    order = torch.arange(PARTS).expand_as(last)
    early, late = 0, -1
    return (
        Finding(
            "C8",
            "accuracy rises with the loss quantile trained on",
            "Spearman correlation of the tenth with the final test accuracy",
            over_seeds(spearman(order, last).numpy()),
            "above",
        ),
        Finding(
            "C8",
            "the hardest tenth is better than the easiest",
            "difference of the final test accuracy",
            over_seeds(accuracy_SQE[:, PARTS - 1, -1] - accuracy_SQE[:, 0, -1]),
            "above",
        ),
        Finding(
            "C8",
            "the hardest tenth is as good as all data",
            "difference of the final test accuracy, and a margin of 0.02",
            over_seeds(accuracy_SQE[:, PARTS - 1, -1] - accuracy_SQE[:, PARTS, -1] + 0.02),
            "above",
        ),
        Finding(
            "C2b",
            "early, low-aleatoric data are best",
            "correlation of aleatoric uncertainty with the drop of the test loss, before the first step",
            over_seeds(by_step["aleatoric"][:, early]),
            "below",
        ),
        Finding(
            "C2b",
            "later, high-epistemic data are best",
            "correlation of epistemic uncertainty with the drop of the test loss, after the last step",
            over_seeds(by_step["epistemic"][:, late]),
            "above",
        ),
    )
