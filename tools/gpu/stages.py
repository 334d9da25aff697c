"""What is run on a GPU, in the order of its worth. Every stage is a list of commands, each in a process of its own."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tools.gpu.files import MODEL, TOKENIZER

PYTHON = sys.executable
ROOT = Path(__file__).resolve().parents[2]
REAL_SIZE = Path(__file__).parent / "evidence"
MANY_EPOCHS = ROOT / "src" / "uncertune" / "recipes" / "sweeps"


@dataclass(frozen=True)
class Place:
    """Where a run of the stages works: ``small`` is the CPU with a tiny model; ``dry`` is the CPU with the models and
    settings of a GPU, cut to two steps and a few tokens."""

    out: Path
    work: Path
    """For models and runs that do not come back."""
    small: bool
    dry: bool = False

    @property
    def device(self) -> str:
        return "cpu" if self.small or self.dry else "cuda"

    def cut(self, *words: str) -> list[str]:
        """Options that make a command short; none on a GPU."""
        return list(words) if self.small or self.dry else []

    @property
    def model(self) -> str:
        """The small model, with its trained weights."""
        if self.small:
            return str(self.work / "tiny")
        carried = self.work / MODEL
        return str(carried) if carried.is_file() else "smollm2-135m"

    @property
    def tokenizer(self) -> str:
        carried = self.work / TOKENIZER
        return str(carried) if carried.is_dir() else self.model

    def random(self, shape: str) -> str:
        """A model of a usual shape with random weights, which stage ``models`` makes."""
        return str(self.work / ("tiny" if self.small else f"random-{shape}"))


@dataclass(frozen=True)
class Stage:
    """``seconds`` of the ten minutes it may take, the packages it needs, and its commands.

    They run in order, or all at once where ``together``: small models leave most of a GPU idle. ``spares`` is what it
    leaves of the time to later stages.
    """

    name: str
    about: str
    seconds: float
    needs: tuple[str, ...]
    commands: Callable[[Place], list[list[str]]]
    together: bool = False
    spares: float = 0


def _kernels(place: Place) -> list[list[str]]:
    pytest = [PYTHON, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-W", "default"]
    if place.small or place.dry:
        return [[*pytest, "-m", "not gpu", "tests/fused/test_gpu.py"]]
    return [[*pytest, "-m", "gpu", "tests/fused/test_gpu.py"]]


def _head(place: Place) -> list[list[str]]:
    command = [PYTHON, "-m", "benchmarks.head", "--device", place.device, "--output_dir", str(place.out)]
    shapes = "tiny" if place.small else "llama-3.2-1b,gemma-2-2b,smollm2"
    sizes = place.cut("--tokens", "64", "--repeats", "1") or ["--tokens", "8192,4096", "--repeats", "7"]
    return [[*command, "--shapes", shapes, *sizes]]


def _choices(place: Place) -> list[list[str]]:
    command = [PYTHON, "-m", "tools.gpu.choices", "--device", place.device, "--output_dir", str(place.out)]
    return [[*command, *place.cut("--tokens", "64"), *(["--shapes", "tiny"] if place.small else [])]]


def _models(place: Place) -> list[list[str]]:
    if place.small:
        return []
    command = [PYTHON, "-m", "tools.gpu.random_model"]
    shapes = ("smollm2",) if place.dry else ("smollm2", "llama-3.2-1b")
    return [[*command, shape, place.random(shape), place.tokenizer] for shape in shapes]


def _steps(place: Place) -> list[list[str]]:
    command = [PYTHON, "-m", "benchmarks.step", "--device", place.device, "--gradient_checkpointing"]
    cut = place.cut("--batch_size", "2", "--accumulation", "1", "--rounds", "1", "--steps", "1")
    if place.small:
        small = ["--model", place.random("smollm2"), "--arms", "sft,masked_mle"]
        return [[*command, *small, *cut, "--output_dir", str(place.out)]]
    arms = "sft,mle,masked_mle,masked_mle_distill,masked_mle_distill+hidden"
    sizes = ["--arms", arms, "--batch_size", "32", "--accumulation", "4,1", "--rounds", "1", "--steps", "4"]
    return [
        [*command, *sizes, *cut, "--model", place.random(shape), "--output_dir", str(place.out / shape)]
        for shape in (("smollm2",) if place.dry else ("llama-3.2-1b", "smollm2"))
    ]


def _dropout(place: Place) -> list[list[str]]:
    command = [PYTHON, "-m", "benchmarks.uncertainty", "--device", place.device, "--output_dir", str(place.out)]
    sizes = ["--samples", "100", *place.cut("--tokens", "16", "--samples", "2", "--repeats", "1")]
    return [[*command, "--model", place.random("smollm2"), *sizes]]


def _launch(place: Place) -> list[list[str]]:
    words = ["--model", place.random("smollm2"), "--output_dir", str(place.out), "--work", str(place.work / "launch")]
    return [[PYTHON, "-m", "tools.gpu.launch", *words, *place.cut("--small")]]


def _evidence(place: Place) -> list[list[str]]:
    """Sweeps side by side: small data over many epochs, a process a seed; and whole data sets."""
    command = [PYTHON, "-m", "uncertune.cli", "sweep", "--model_name_or_path", place.model, "--jobs", "1"]
    cut = place.cut("--max_train_samples", "4", "--max_steps", "2", "--per_device_train_batch_size", "2")
    cut += place.cut("--documents", "2", "--bf16", "false", "--use_cpu", "true", "--dtype", "float32")
    cut += place.cut("--measure_dtype", "float32")
    if place.small:
        cut += ["--dataset_name", "word_problems", "--held_out", "2", "--out", str(place.work / "other.jsonl")]
    sweeps = [
        (f"epochs-{data}-s{seed}", MANY_EPOCHS / f"epochs_smollm2_{data}.yaml", ["--seeds", seed, "--batch_size", "32"])
        for seed in "012"
        for data in ("gsm8k", "alpaca")
    ]
    sweeps += [(f"{data}-s0", REAL_SIZE / f"{data}.yaml", ["--seeds", "0"]) for data in ("gsm8k", "alpaca")]
    if place.small:
        sweeps = [(f"gsm8k-s{seed}", REAL_SIZE / "gsm8k.yaml", ["--seeds", seed]) for seed in "01"]
    if place.dry:
        sweeps = sweeps[:1] + sweeps[-1:]
    return [
        [*command, "--config", str(config), *words, *cut, "--output_dir", str(place.out / name)]
        for name, config, words in sweeps
    ]


def _answers(place: Place) -> list[list[str]]:
    """Greedy answers of the base and of every run on whole data, then their score."""
    runs = sorted(path.parent for path in place.out.parent.glob("evidence/*/runs/*/adapter_config.json"))
    runs = [path for path in runs if not path.parent.parent.name.startswith("epochs")]
    names = [f"{path.parent.parent.name.removesuffix('-s0')}-{path.name}" for path in runs]
    command = [PYTHON, "-m", "uncertune.cli", "generate", place.model, *map(str, runs)]
    command += ["--labels", ",".join(["base", *names]), "--max_new_tokens", "4" if place.device == "cpu" else "320"]
    limits = {"word_problems": "2"} if place.small else {"gsm8k": "500", "ifeval": "200"}
    out = []
    for data, limit in limits.items():
        words = ["--prompts", data, "--limit", *(place.cut("2") or [limit]), "--batch_size", "256"]
        out.append([*command, *words, "--output_dir", str(place.out / data)])
    maths = next(iter(limits))
    return [*out, [PYTHON, "-m", "tools.gpu.answers", str(place.out / maths), maths]]


STAGES = (
    Stage("kernels", "kernels and tests marked gpu", 40, ("pytest",), _kernels),
    Stage("head", "head race: time and peak memory against every peer", 130, (), _head),
    Stage("choices", "sizes and implementations that the head may choose from", 40, (), _choices),
    Stage("models", "models with random weights for the next stages", 40, (), _models),
    Stage("steps", "whole steps against trl sft", 130, ("trl", "datasets"), _steps),
    Stage("dropout", "dropout scoring against as many plain passes", 30, (), _dropout),
    Stage(
        "launch", "FSDP2 and a 4-bit base on one GPU: losses against the plain run", 60, ("trl", "datasets"), _launch
    ),
    Stage("evidence", "SmolLM2-135M at real size", 10_000, ("trl", "datasets"), _evidence, together=True, spares=90),
    Stage("answers", "greedy answers of what was trained", 10_000, ("trl", "datasets"), _answers),
)
