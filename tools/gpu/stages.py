"""What is run on a GPU, in the order of its worth. Every stage is a list of commands, each in a process of its own."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from tools.gpu import mixture
from tools.gpu.files import MODEL, STUDENT, TOKENIZER

PYTHON = sys.executable
ROOT = Path(__file__).resolve().parents[2]
REAL_SIZE = Path(__file__).parent / "evidence"
MANY_EPOCHS = ROOT / "src" / "uncertune" / "recipes" / "sweeps"


@dataclass(frozen=True)
class Place:
    """Where a run of the stages works: ``small`` takes a tiny model; ``dry`` has the models and settings of a GPU, cut
    to two steps and a few tokens."""

    out: Path
    work: Path
    """For models and runs that do not come back."""
    small: bool
    dry: bool = False
    device: str = "cuda"

    def cut(self, *words: str) -> list[str]:
        """Options that make a command short; none at full size."""
        return list(words) if self.small or self.dry else []

    @property
    def model(self) -> str:
        """The small model: with its trained weights if they were carried, with random ones in a dry run without."""
        if self.small:
            return str(self.work / "tiny")
        carried = self.work / MODEL
        if self.dry and not carried.is_file():
            return self.random("smollm2")
        return str(carried) if carried.is_file() else "smollm2-135m"

    @property
    def student(self) -> str:
        """The model that can do the tasks: the one that was carried, else the hub's; the small one in a short run."""
        carried = self.work / STUDENT
        if carried.is_file() and not self.small:
            return str(carried)
        return self.model if self.small or self.dry else "Qwen/Qwen2.5-Coder-0.5B-Instruct"

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
    environment: Mapping[str, str] = field(default_factory=dict)
    """Variables of its commands on a GPU."""


def _kernels(place: Place) -> list[list[str]]:
    pytest = [PYTHON, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-W", "default"]
    if place.device == "cpu":
        return [[*pytest, "-m", "not gpu", "tests/fused/test_gpu.py"]]
    return [[*pytest, "-m", "gpu", "tests/fused/test_gpu.py", "tests/training/test_devices.py"]]


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
    shapes = ("smollm2",) if place.dry else ("llama-3.2-1b", "smollm2")
    return [[*command, shape, place.random(shape), place.tokenizer] for shape in shapes]


def _steps(place: Place) -> list[list[str]]:
    command = [PYTHON, "-m", "benchmarks.step", "--device", place.device, "--gradient_checkpointing"]
    cut = place.cut("--batch_size", "2", "--accumulation", "1", "--rounds", "1", "--steps", "1")
    if place.small:
        small = ["--model", place.random("smollm2"), "--arms", "sft,masked_mle"]
        return [[*command, *small, *cut, "--output_dir", str(place.out)]]
    arms = "sft,mle,masked_mle,masked_mle_distill,masked_mle_distill+hidden"
    sizes = ["--arms", arms, "--batch_size", "32", "--rounds", "1", "--steps", "4"]
    by_worth = [("smollm2", "4")] if place.dry else [("llama-3.2-1b", "4"), ("smollm2", "4"), ("llama-3.2-1b", "1")]
    commands = []
    for shape, parts in by_worth:
        model = ["--model", place.random(shape), "--accumulation", parts]
        commands.append([*command, *model, *sizes, *cut, "--output_dir", str(place.out / f"{shape}-{parts}")])
    return commands


def _dropout(place: Place) -> list[list[str]]:
    command = [PYTHON, "-m", "benchmarks.uncertainty", "--device", place.device, "--output_dir", str(place.out)]
    sizes = ["--samples", "100", *place.cut("--tokens", "16", "--samples", "2", "--repeats", "1")]
    return [[*command, "--model", place.random("smollm2"), *sizes]]


def _launch(place: Place) -> list[list[str]]:
    words = ["--model", place.random("smollm2"), "--output_dir", str(place.out), "--work", str(place.work / "launch")]
    return [[PYTHON, "-m", "tools.gpu.launch", *words, *(["--small"] if place.device == "cpu" else [])]]


def _sweep(place: Place, config: Path, seed: str, *more: str, model: str | None = None) -> list[str]:
    """One seed of a sweep."""
    command = [PYTHON, "-m", "uncertune.cli", "sweep", "--model_name_or_path", model or place.model, "--jobs", "1"]
    cut = place.cut("--max_train_samples", "4", "--max_steps", "2", "--per_device_train_batch_size", "2")
    cut += place.cut("--documents", "2")
    if place.device == "cpu":
        cut += ["--bf16", "false", "--use_cpu", "true", "--dtype", "float32", "--measure_dtype", "float32"]
    if place.small:
        cut += ["--dataset_name", "word_problems", "--held_out", "2", "--out", str(place.work / "other.jsonl")]
    out = place.out / f"{config.stem.replace('_smollm2_', '-').replace('_', '-')}-s{seed}"
    return [*command, "--config", str(config), "--seeds", seed, *more, *cut, "--output_dir", str(out)]


def _evidence(place: Place) -> list[list[str]]:
    """Small data over many epochs, a process a seed, and beside it the whole of GSM8K."""
    whole = REAL_SIZE / "gsm8k.yaml"
    if place.small:
        return [_sweep(place, whole, seed) for seed in "01"]
    one_pass = _sweep(place, whole, "0", "--num_train_epochs", "1")  # three do not fit ten minutes
    return [*_epochs(place, MANY_EPOCHS), one_pass]


def _arms(place: Place) -> list[list[str]]:
    """The arms of small data over many epochs that ten minutes have no room for beside the others, and MLE again."""
    rest = place.work / "arms"
    rest.mkdir(parents=True, exist_ok=True)
    for path in MANY_EPOCHS.glob("epochs_smollm2_*.yaml"):
        config = yaml.safe_load(path.read_text(encoding="utf-8"))
        config["sweep"]["arms"] = config["sweep"]["arms"][FIRST_ARMS:]
        (rest / path.name).write_text(yaml.safe_dump(config), encoding="utf-8")
    return _epochs(place, rest)


def _epochs(place: Place, configs: Path) -> list[list[str]]:
    """Small data over many epochs, a process a seed; the first one only in a short run."""
    runs = [(configs / f"epochs_smollm2_{data}.yaml", seed) for seed in "012" for data in ("gsm8k", "alpaca")]
    short = place.small or place.dry
    return [_sweep(place, config, seed, "--batch_size", "32") for config, seed in runs[: 1 if short else None]]


def _answers(place: Place) -> list[list[str]]:
    """Greedy answers of the base and of every run on the whole of GSM8K; ``tools.gpu.tables`` scores them."""
    runs = sorted(path.parent for path in place.out.parent.glob("evidence/gsm8k-s*/runs/*/adapter_config.json"))
    limits = {"word_problems": "2"} if place.small else {"gsm8k": "500", "ifeval": "200"}
    models = {"base": place.model, **{run.name: str(run) for run in runs}}
    return [
        _generate(place, data, limit, {name: model})
        for (data, limit), (name, model) in itertools.product(limits.items(), models.items())
    ]


def _generate(place: Place, data: str, limit: str, models: Mapping[str, str]) -> list[str]:
    """Greedy answers of models with one base to the first prompts, in a folder with the first model's name."""
    command = [PYTHON, "-m", "uncertune.cli", "generate", *models.values(), "--labels", ",".join(models)]
    words = ["--max_new_tokens", *(place.cut("4") or [NEW_TOKENS[data]]), "--batch_size", "256"]
    words += ["--dtype", "bfloat16"] if place.device == "cuda" else []
    asked = ["--prompts", data, "--limit", *(place.cut("2") or [limit])]
    return [*command, *words, *asked, "--output_dir", str(place.out / data / next(iter(models)))]


NEW_TOKENS = {"gsm8k": "512", "ifeval": "320", "alpaca_eval": "320"}
"""Longest answers. To GSM8K nearly all end by themselves; longer ones to the others do not fit ten minutes."""


def _student(place: Place, kinds: tuple[str, ...] = ("gsm8k", "alpaca")) -> list[list[str]]:
    """A model that can do the tasks: small data over many epochs, a process a seed."""
    configs = [(REAL_SIZE / f"student_{kind}.yaml", seed) for seed in "012" for kind in kinds]
    commands = [_sweep(place, config, seed, model=place.student) for config, seed in configs]
    mixed = {seed: place.work / "data" / mixture.name(seed) for seed in mixture.SEEDS if "alpaca" in kinds}
    for seed, rows in mixed.items():
        if rows.is_file():
            more = ["--dataset_name", str(rows)]
            commands.append(_sweep(place, REAL_SIZE / "student_mixed.yaml", str(seed), *more, model=place.student))
    return commands[: 1 if place.small or place.dry else None]


def _student_pass(place: Place) -> list[list[str]]:
    """The same model, one pass over more rows."""
    return _student(place, ("pass",))


def _student_answers(place: Place) -> list[list[str]]:
    """Answers of the student and of everything trained from it to problems of GSM8K; a process a sweep."""
    data, limit = ("word_problems", "2") if place.small else ("gsm8k", "256")
    return [_generate(place, data, limit, group) for group in _trained_students(place).values()]


def _student_following(place: Place) -> list[list[str]]:
    """The same of IFEval's prompts; to those of AlpacaEval, for a judge, what seed 0 trained on Alpaca answers."""
    data = "word_problems" if place.small else "ifeval"
    groups = _trained_students(place)
    commands = [_generate(place, data, "200", group) for group in groups.values()]
    judged = {**groups["base"], **groups.get("alpaca-s0", {}), **groups.get("mixed-s0", {})}
    return commands if place.small else [*commands, _generate(place, "alpaca_eval", "128", judged)]


def _trained_students(place: Place) -> dict[str, dict[str, str]]:
    """The folder of the untrained student, and of the runs of each of its sweeps, by name, MLE first."""
    groups = {"base": {"base": place.student}}
    for path in sorted(place.out.parent.glob("student/*/runs/*/adapter_config.json"), reverse=True):
        sweep, run = path.parents[2].name.removeprefix("student-"), path.parent
        groups.setdefault(sweep, {})[f"{sweep.rpartition('-s')[0]}-{run.name}"] = str(run)
    return groups


def _more(place: Place) -> list[list[str]]:
    return [] if place.small else [_sweep(place, REAL_SIZE / "alpaca.yaml", "0")]


FIRST_ARMS = 5
"""Entries of ``sweep.arms`` in the recipes over many epochs that stage ``evidence`` has had the time for."""

SHARED = {
    "OMP_NUM_THREADS": "2",
    "PYTORCH_ALLOC_CONF": "expandable_segments:True",
    "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE": "1",  # for the recipes in float32, and all measuring
}
"""For processes that share a GPU."""

STAGES = (
    Stage("kernels", "kernels and tests marked gpu", 40, ("pytest",), _kernels),
    Stage("head", "head race: time and peak memory against every peer", 130, (), _head),
    Stage("choices", "sizes and implementations that the head may choose from", 60, (), _choices),
    Stage("models", "models with random weights for the next stages", 40, (), _models, together=True),
    Stage("steps", "whole steps against trl sft", 160, ("trl", "datasets"), _steps),
    Stage("dropout", "dropout scoring against as many plain passes", 45, (), _dropout),
    Stage(
        "launch",
        "FSDP2, fp16 and a 4-bit base on one GPU: losses against the plain run",
        60,
        ("trl", "datasets"),
        _launch,
    ),
    Stage(
        "evidence",
        "SmolLM2-135M: small data over many epochs, and the whole of GSM8K",
        10_000,
        ("trl", "datasets"),
        _evidence,
        together=True,
        spares=90,
        environment=SHARED,
    ),
    Stage(
        "answers",
        "greedy answers of what was trained on the whole of GSM8K",
        10_000,
        ("trl", "datasets"),
        _answers,
        together=True,
        environment=SHARED,
    ),
    Stage(
        "arms",
        "SmolLM2-135M: small data over many epochs, the other arms",
        10_000,
        ("trl", "datasets"),
        _arms,
        together=True,
        environment=SHARED,
    ),
    Stage(
        "student",
        "Qwen2.5-Coder-0.5B-Instruct: small data over many epochs",
        10_000,
        ("trl", "datasets"),
        _student,
        together=True,
        spares=330,
        environment=SHARED,
    ),
    Stage(
        "student-answers",
        "Qwen2.5-Coder-0.5B-Instruct, untrained and trained: greedy answers to problems of GSM8K",
        10_000,
        ("trl", "datasets"),
        _student_answers,
        together=True,
        spares=190,
        environment=SHARED,
    ),
    Stage(
        "student-following",
        "the same: greedy answers to prompts of IFEval and AlpacaEval",
        10_000,
        ("trl", "datasets"),
        _student_following,
        together=True,
        environment=SHARED,
    ),
    Stage(
        "student-pass",
        "Qwen2.5-Coder-0.5B-Instruct: one pass over more rows",
        10_000,
        ("trl", "datasets"),
        _student_pass,
        together=True,
        environment=SHARED,
    ),
    Stage(
        "more",
        "more evidence: ten thousand rows of Alpaca",
        10_000,
        ("trl", "datasets"),
        _more,
        environment=SHARED,
    ),
)
