"""The software and hardware that a run used, for its audit."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import sys
from pathlib import Path
from typing import Any

import torch

_PACKAGES = ("uncertune", "torch", "transformers", "trl", "peft", "accelerate", "datasets", "numpy")


def environment() -> dict[str, Any]:
    """Versions, processors and devices of this process, for the audit of a run."""
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
        "command": _without_secrets([Path(sys.argv[0]).name, *sys.argv[1:]]),
    }


def _without_secrets(command: list[str]) -> list[str]:
    """The words of a command, the value of every ``--…token`` hidden."""
    out: list[str] = []
    for word in command:
        if out and re.fullmatch(r"--[\w-]*token", out[-1]):
            word = "***"
        out.append(re.sub(r"^(--[\w-]*token)=.*", r"\1=***", word))
    return out
