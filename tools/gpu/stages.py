"""What is run on a GPU, in the order of its worth. Every stage is a list of commands, each in a process of its own."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tools.gpu.files import MODEL

PYTHON = sys.executable
EVIDENCE = Path(__file__).parent / "evidence"


@dataclass(frozen=True)
class Place:
    """Where a run of the stages works: ``small`` is the CPU with tiny sizes."""

    out: Path
    work: Path
    """For models and runs that do not come back."""
    small: bool

    @property
    def device(self) -> str:
        return "cpu" if self.small else "cuda"

    @property
    def model(self) -> str:
        if self.small:
            return str(self.work / "tiny")
        carried = self.work / MODEL
        return str(carried) if carried.is_file() else "smollm2-135m"


@dataclass(frozen=True)
class Stage:
    """``seconds`` of the ten minutes it may take, the packages it needs, and its commands in order."""

    name: str
    about: str
    seconds: float
    needs: tuple[str, ...]
    commands: Callable[[Place], list[list[str]]]


def _kernels(place: Place) -> list[list[str]]:
    pytest = [PYTHON, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    if place.small:
        return [[*pytest, "-m", "not gpu", "tests/fused/test_gpu.py"]]
    return [[*pytest, "-m", "gpu", "tests/fused/test_gpu.py"], [*pytest, "tests/fused/test_kernels.py"]]


def _head(place: Place) -> list[list[str]]:
    command = [PYTHON, "-m", "benchmarks.head", "--device", place.device, "--output_dir", str(place.out)]
    if place.small:
        return [[*command, "--shapes", "tiny", "--tokens", "64", "--repeats", "1"]]
    shapes = ("llama-3.2-1b", "gemma-2-2b", "smollm2")
    return [[*command, "--shapes", shape, "--tokens", "4096,8192"] for shape in shapes]


def _steps(place: Place) -> list[list[str]]:
    command = [PYTHON, "-m", "benchmarks.step", "--device", place.device, "--gradient_checkpointing"]
    arms = "sft,mle,masked_mle,masked_mle_distill,masked_mle_distill+hidden"
    if place.small:
        small = ["--model", place.model, "--arms", "sft,masked_mle"]
        small += ["--batch_size", "2", "--rounds", "1", "--steps", "1"]
        return [[*command, *small, "--output_dir", str(place.out)]]
    sizes = ["--arms", arms, "--batch_size", "32", "--accumulation", "1,4", "--rounds", "2"]
    random = [PYTHON, "-m", "tools.gpu.random_model", str(place.work / "llama-1b"), place.model]
    return [
        [*command, *sizes, "--model", place.model, "--output_dir", str(place.out / "smollm2")],
        random,
        [*command, *sizes, "--model", str(place.work / "llama-1b"), "--output_dir", str(place.out / "llama-1b")],
    ]


def _dropout(place: Place) -> list[list[str]]:
    command = [PYTHON, "-m", "benchmarks.uncertainty", "--device", place.device, "--output_dir", str(place.out)]
    sizes = ["--tokens", "16", "--samples", "2", "--repeats", "1"] if place.small else ["--samples", "100"]
    return [[*command, "--model", place.model, *sizes]]


def _launch(place: Place) -> list[list[str]]:
    words = ["--model", place.model, "--output_dir", str(place.out), "--work", str(place.work / "launch")]
    return [[PYTHON, "-m", "tools.gpu.launch", *words, *(["--small"] if place.small else [])]]


def _evidence(place: Place) -> list[list[str]]:
    out = []
    for data in ("gsm8k", "alpaca"):
        command = [PYTHON, "-m", "uncertune.cli", "sweep", "--config", str(EVIDENCE / f"{data}.yaml")]
        command += ["--output_dir", str(place.out / data)]
        if place.small:
            command += ["--model_name_or_path", place.model, "--dataset_name", "word_problems", "--seeds", "0"]
            command += ["--max_train_samples", "4", "--max_steps", "2", "--per_device_train_batch_size", "2"]
            command += [
                "--documents",
                "2",
                "--out",
                str(place.work / "other.jsonl"),
                "--bf16",
                "false",
                "--use_cpu",
                "true",
            ]
            command += ["--dtype", "float32", "--held_out", "2", "--measure_dtype", "float32"]
        out.append(command)
    return out[:1] if place.small else out


STAGES = (
    Stage("kernels", "kernels and tests marked gpu", 90, ("pytest",), _kernels),
    Stage("head", "head race: time and peak memory against every peer", 150, (), _head),
    Stage("steps", "whole steps against trl sft", 120, ("trl", "datasets"), _steps),
    Stage("dropout", "dropout scoring against as many plain passes", 45, (), _dropout),
    Stage(
        "launch", "FSDP2 and a 4-bit base on one GPU: losses against the plain run", 60, ("trl", "datasets"), _launch
    ),
    Stage("evidence", "SmolLM2-135M at real size", 10_000, ("trl", "datasets"), _evidence),
)
