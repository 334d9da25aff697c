"""Transfers between the host and a device, as few and as rarely waited for as possible.

A host that waits for its device (for a value, or for a shape that depends on values) enqueues nothing meanwhile, so
that a GPU bound by kernel launches idles.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def to_cpu(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Copies on the CPU, by one transfer for all tensors of one device and type."""
    groups: dict[tuple[torch.device, torch.dtype], list[int]] = {}
    for number, one in enumerate(tensors):
        groups.setdefault((one.device, one.dtype), []).append(number)
    copies = list(tensors)
    for numbers in groups.values():
        flat = torch.cat([tensors[number].reshape(-1) for number in numbers]).cpu()
        parts = flat.split([tensors[number].numel() for number in numbers])
        for number, part in zip(numbers, parts, strict=True):
            copies[number] = part.view(tensors[number].shape)
    return copies


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """A CPU tensor on ``device``; the host does not wait for the copy."""
    if device.type == "cuda":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=device.type != "mps")  # which copies from memory that may be freed by then


def values(scalars: Sequence[Tensor]) -> list[float]:
    """The values of 0-dimensional tensors, by one transfer."""
    if not scalars:
        return []
    device = scalars[0].device
    exact = torch.float32 if device.type == "mps" else torch.float64
    return torch.stack([one.detach().to(device, exact) for one in scalars]).tolist()
