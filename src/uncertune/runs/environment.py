"""The software and hardware of a run."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import sys
from pathlib import Path
from typing import Any

import torch

from uncertune.runs.secrets import hidden_in_command

_PACKAGES = ("uncertune", "torch", "transformers", "trl", "peft", "accelerate", "datasets", "numpy")


def environment() -> dict[str, Any]:
    """Versions, processors and devices of this process, for the records of a run."""
    versions: dict[str, str | None] = {}
    for package in _PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = None
    devices = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": versions,
        "processors": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "devices": devices or ["cpu"],
        "command": hidden_in_command([Path(sys.argv[0]).name, *sys.argv[1:]]),
    }
