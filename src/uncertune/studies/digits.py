"""Handwritten digits: MNIST from a folder or the hub, or scikit-learn's (8 × 8, 1797 images)."""

from __future__ import annotations

import gzip
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from uncertune.errors import UserError

FILES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")


@dataclass(frozen=True)
class Digits:
    """Images (N, pixels), standardised, and labels (N,)."""

    name: str
    train: Tensor
    train_labels: Tensor
    test: Tensor
    test_labels: Tensor


def load(source: str | None) -> Digits:
    """Load digits. ``source``: ``digits`` (scikit-learn's), a folder with MNIST's four files (or ``mnist/`` in it), or
    None for the folder $UNCERTUNE_DATA if it has them, else the hub (ylecun/mnist).

    Raises UserError if the source is not available.
    """
    if source == "digits":
        return _bundled()
    folder = source or os.environ.get("UNCERTUNE_DATA")
    found = _files(Path(folder).expanduser()) if folder else None
    if found is None and source:
        raise UserError(f"data_dir: {source} has no MNIST: put {FILES[0]}.gz and its three companions there")
    return _digits("MNIST", *map(_idx, found)) if found else _hub()


def _files(folder: Path) -> list[Path] | None:
    """The four files, compressed or not, in ``folder`` or its ``mnist``; None unless all exist."""
    for place in (folder / "mnist", folder):
        found = [next((p for p in (place / f"{n}.gz", place / n) if p.is_file()), None) for n in FILES]
        if None not in found:
            return [path for path in found if path is not None]
    return None


def _hub() -> Digits:
    from datasets import load_dataset

    try:
        parts = [load_dataset("ylecun/mnist", split=split).with_format("torch") for split in ("train", "test")]
    except Exception as error:  # any error of datasets or the hub
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(
            f"data: ylecun/mnist is not available on the hub ({reason}); give --data_dir FOLDER, or --data digits for "
            "scikit-learn's smaller digits"
        ) from error
    arrays = [part[:][column] for part in parts for column in ("image", "label")]
    return _digits("MNIST", *arrays)


def _idx(path: Path) -> Tensor:
    """One file of the IDX format: two zero bytes, the type 8 (unsigned byte), the number of dimensions, each's size."""
    content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    if content[:3] != b"\x00\x00\x08":
        raise UserError(f"data: {path} is not an IDX file of bytes: download it again")
    dimensions = content[3]
    shape = [int.from_bytes(content[4 + 4 * i : 8 + 4 * i], "big") for i in range(dimensions)]
    values = np.frombuffer(content, np.uint8, offset=4 + 4 * dimensions)
    if len(values) != int(np.prod(shape)):
        raise UserError(f"data: {path} is truncated: download it again")
    return torch.from_numpy(values.reshape(shape).copy())


def _bundled() -> Digits:
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise UserError(
            'data: digits come with scikit-learn, which is not installed: pip install "uncertune[studies]"'
        ) from None
    images, labels = load_digits(return_X_y=True)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    x, y = torch.from_numpy(images)[order] * (255 / 16), torch.from_numpy(labels)[order]
    return _digits("scikit-learn's digits", x[:1500], y[:1500], x[1500:], y[1500:])


def _digits(name: str, train: Tensor, train_labels: Tensor, test: Tensor, test_labels: Tensor) -> Digits:
    x, held = (images.reshape(len(images), -1).float() / 255 for images in (train, test))
    mean, deviation = x.mean(), x.std()
    return Digits(name, (x - mean) / deviation, train_labels.long(), (held - mean) / deviation, test_labels.long())
