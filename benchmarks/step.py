"""``python -m benchmarks.step``: whole training steps on one model and the same batches, TRL's and ours.

Forward, teacher, selection, backward and optimizer, data loading included. All trainers live in this process and take
turns of a few steps each; the first step of a turn does not count. On a CPU peak memory comes from a process of its own
per arm; on CUDA the allocator tells it in this process.
LoRA on every linear layer without dropout, or ``--full``; on CUDA the frozen base is bfloat16. The teacher of the
distilling arms is another adapter (with ``--full`` another model): it runs live, or (``+hidden``, ``+topk``) its
answers are read from a cache that was filled before, and it is not loaded.
"""

from __future__ import annotations

import argparse
import gc
import multiprocessing
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from datasets import disable_progress_bars
from transformers import PrinterCallback, TrainerCallback
from trl import SFTConfig, SFTTrainer

from benchmarks import measure, tables
from uncertune import UncertuneConfig, UncertuneTrainer
from uncertune.data.sources import load
from uncertune.models import resolve_model

# name → our configuration; sft and sft_dft are TRL's own trainer
ARMS: dict[str, dict[str, Any]] = {
    "sft": {},
    "sft_dft": {"loss_type": "dft"},
    "mle": {"objective": "mle"},
    "masked_mle": {"objective": "masked_mle"},
    "masked_mle_running": {"objective": "masked_mle", "selection_scope": "running"},
    "masked_mle_document": {"objective": "masked_mle", "selection_level": "document"},
    "masked_mle_distill": {"objective": "masked_mle_distill"},
    "masked_mle_distill+hidden": {"objective": "masked_mle_distill", "teacher_cache": "hidden"},
    "dft": {"token_weighting": "dft"},
    "eaft": {"token_weighting": "eaft"},
    "anchor": {"anchor": "base"},
    "anchor+hidden": {"anchor": "base", "teacher_cache": "hidden"},
    "masked_mle_distill_anchor": {"objective": "masked_mle_distill", "anchor": "base"},
    "masked_mle_distill_members": {"objective": "masked_mle_distill"},
    "truncated_distill+topk": {"objective": "truncated_distill", "teacher_cache": "topk"},
}
SEED_OF_TEACHER = 7
MEMBERS = 4
STEPS_OF_MEMORY = 3


@dataclass(frozen=True)
class Setting:
    """One set-up, the same for every arm."""

    model: str
    batch_size: int
    accumulation: int
    full: bool
    checkpointing: bool
    lora_r: int
    folder: str
    device: str
    float32: bool = False

    @property
    def fields(self) -> dict[str, Any]:
        return {
            "use_cpu": self.device == "cpu",
            "bf16": not self.float32,
            "per_device_train_batch_size": self.batch_size,
            "gradient_accumulation_steps": self.accumulation,
            "gradient_checkpointing": self.checkpointing,
            "learning_rate": 1e-6,
            "save_strategy": "no",
            "report_to": [],
            "disable_tqdm": True,
            "logging_steps": 1000,
            "assistant_only_loss": True,
        }


class Steps(TrainerCallback):
    """Seconds from the end of one step to the end of the next."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def on_step_end(self, *_: Any, **__: Any) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.ends.append(time.perf_counter())

    def seconds(self) -> list[float]:
        return [end - start for start, end in zip(self.ends, self.ends[1:], strict=False)]


def trainer_of(arm: str, setting: Setting, steps: int) -> tuple[Any, Steps]:
    """A trainer for ``steps`` optimizer steps over the same rows, in the same order, for every arm."""
    rows = setting.batch_size * setting.accumulation * steps
    name = "gsm8k" if os.environ.get("UNCERTUNE_DATA") else "word_problems"
    data = load(name, max_samples=rows)
    common = {"train_dataset": data, "peft_config": None if setting.full else _lora(setting)}
    fields = setting.fields | {"max_steps": steps, "output_dir": str(Path(setting.folder) / arm)}
    if arm.startswith("sft"):
        args = SFTConfig(**ARMS[arm], **fields)
        trainer = SFTTrainer(_model(setting), args, processing_class=_tokenizer(setting), **common)
    else:
        cache = {"teacher_cache_dir": f"{setting.folder}/cache-{rows}"} if "teacher_cache" in ARMS[arm] else {}
        args = UncertuneConfig(save_selection=False, **ARMS[arm], **cache, **fields)
        teacher = _teacher(setting) if "distill" in arm else None
        teacher = [teacher] * MEMBERS if arm.endswith("members") else teacher
        trainer = UncertuneTrainer(
            _model(setting), args, processing_class=_tokenizer(setting), teacher=teacher, **common
        )
        if any(one.lacks for one in trainer.references.caches.all):  # the arm is what comes after
            trainer.fill_teacher_cache()
            return trainer_of(arm, setting, steps)
    clock = Steps()
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(clock)
    return trainer, clock


def _model(setting: Setting) -> Any:
    from transformers import AutoModelForCausalLM

    dtype = torch.float32 if setting.device == "cpu" or setting.full else torch.bfloat16
    return AutoModelForCausalLM.from_pretrained(resolve_model(setting.model), dtype=dtype)


def _tokenizer(setting: Setting) -> Any:
    """With the chat template that marks what the assistant says, which TRL does not know for this model."""
    from transformers import AutoTokenizer

    from uncertune.data.templates import training_template

    tokenizer = AutoTokenizer.from_pretrained(resolve_model(setting.model))
    tokenizer.chat_template = training_template(tokenizer) or tokenizer.chat_template
    return tokenizer


def _lora(setting: Setting) -> Any:
    from peft import LoraConfig

    r = setting.lora_r
    return LoraConfig(r=r, lora_alpha=2 * r, lora_dropout=0.0, target_modules="all-linear", task_type="CAUSAL_LM")


def _teacher(setting: Setting) -> Any:
    """A teacher that costs what a trained one does: an adapter with weights that are not zero, or a model."""
    if setting.full:
        return _model(setting)
    from peft import get_peft_model

    folder = Path(setting.folder) / "teacher"
    if not folder.exists():
        torch.manual_seed(SEED_OF_TEACHER)
        adapted = get_peft_model(_model(setting), _lora(setting))
        with torch.no_grad():
            for name, parameter in adapted.named_parameters():
                if "lora_B" in name:
                    parameter.normal_(std=1e-3)
        adapted.save_pretrained(str(folder))
    return str(folder)


def run(setting: Setting, arms: Sequence[str], rounds: int, steps: int) -> list[dict]:
    """One row an arm: median milliseconds a step, ratio to TRL's, peak memory."""
    on_gpu = setting.device == "cuda"
    for arm in arms:
        if "+" in arm and not on_gpu:
            trainer_of(arm, setting, STEPS_OF_MEMORY)  # fills the cache that the other process finds
    peaks = {} if on_gpu else {arm: _peak_apart(arm, setting) for arm in arms}
    trainers, held = {}, {}
    for arm in arms:
        before = torch.cuda.memory_allocated() if on_gpu else 0
        trainers[arm] = trainer_of(arm, setting, steps + 1)
        gc.collect()  # the trainer that filled a cache
        held[arm] = (torch.cuda.memory_allocated() - before) / 2**20 if on_gpu else 0.0
    seconds: dict[str, list[float]] = {arm: [] for arm in arms}
    for turn in range(rounds + 1):
        for arm, (trainer, clock) in trainers.items():
            clock.ends.clear()
            trainer.train()
            if turn > 0:  # the first turn compiles and touches everything once
                seconds[arm] += clock.seconds()
    for arm in arms if on_gpu else ():
        trainer = trainers[arm][0]
        added = measure.peak_mebibytes(trainer.train, "cuda") + state_mebibytes(trainer.optimizer)
        peaks[arm] = {"peak": held[arm] + added, "added": added}
    tokens = _tokens_of_a_step(trainers[arms[0]][0])
    rows = []
    for arm in arms:
        taken, base = measure.timing(seconds[arm]), measure.timing(seconds[arms[0]])
        name = {"sft": "TRL sft", "sft_dft": "TRL sft, dft"}.get(arm, f"uncertune {arm}")
        rows.append(
            {
                "contestant": name,
                "ms": round(taken.median * 1e3),
                "iqr_ms": round(taken.spread * 1e3),
                "tokens_per_s": round(tokens / taken.median),
                f"to_{arms[0]}": round(taken.median / base.median, 3),
                "peak_MiB": round(peaks[arm]["peak"]),
                f"peak_to_{arms[0]}": round(peaks[arm]["peak"] / peaks[arms[0]]["peak"], 3),
                "added_MiB": round(peaks[arm]["added"]),
                f"added_to_{arms[0]}": round(peaks[arm]["added"] / peaks[arms[0]]["added"], 3),
            }
        )
    return rows


def state_mebibytes(optimizer: Any) -> float:
    """What an optimizer keeps from one turn to the next, which no later turn adds."""
    kept = (one for state in optimizer.state.values() for one in state.values() if isinstance(one, torch.Tensor))
    return sum(one.nbytes for one in kept) / 2**20


def _tokens_of_a_step(trainer: Any) -> float:
    """Tokens of an optimizer step without padding, the mean over the data."""
    data, args = trainer.train_dataset, trainer.args
    tokens = sum(len(ids) for ids in data["input_ids"])
    return tokens / len(data) * args.per_device_train_batch_size * args.gradient_accumulation_steps


def _peak_apart(arm: str, setting: Setting) -> dict[str, float]:
    """Peak memory of three steps of an arm in a process of its own, whole and beyond the loaded trainer's, MiB."""
    context = multiprocessing.get_context("forkserver")  # which has the imports of all these processes
    context.set_forkserver_preload(["uncertune.training.trainer"])
    with ProcessPoolExecutor(1, context) as pool:
        return pool.submit(memory_of, arm, setting).result()


def memory_of(arm: str, setting: Setting) -> dict[str, float]:
    disable_progress_bars()
    trainer, _ = trainer_of(arm, setting, STEPS_OF_MEMORY)
    held = measure.resident_kib("VmRSS") / 1024
    added = measure.peak_mebibytes(trainer.train, setting.device)
    return {"peak": held + added, "added": added}


def main(argv: Sequence[str] | None = None) -> None:
    args = _parse(argv)
    disable_progress_bars()
    command = "python -m benchmarks.step " + " ".join(sys.argv[1:] if argv is None else argv)
    name = (
        f"step-{args.device}"
        + ("-full" if args.full else "")
        + ("-checkpointing" if args.gradient_checkpointing else "")
        + ("-float32" if args.float32 else "")
    )
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for accumulation in args.accumulation:
            setting = Setting(
                args.model,
                args.batch_size // accumulation,
                accumulation,
                args.full,
                args.gradient_checkpointing,
                args.lora_r,
                folder,
                args.device,
                args.float32,
            )
            about = {"model": args.model, "batch": args.batch_size, "accumulation": accumulation}
            rows += [about | row for row in run(setting, args.arms, args.rounds, args.steps)]
            print(tables.aligned(rows[-len(args.arms) :]) + "\n")
            tables.save(rows, args.output_dir, name, command, args.device)


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.step", description=__doc__)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--arms", default=",".join(ARMS), help="the first is what the others are compared with")
    parser.add_argument("--batch_size", type=int, default=16, help="rows of an optimizer step")
    parser.add_argument("--accumulation", default="1", help="into how many micro-batches a step is cut; with commas")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=2, help="steps that count in a turn")
    parser.add_argument("--lora_r", type=int, default=32)
    parser.add_argument("--full", action="store_true", help="full fine-tuning instead of LoRA")
    parser.add_argument("--gradient_checkpointing", action="store_true")
    parser.add_argument("--float32", action="store_true", help="no mixed precision: a CPU without bfloat16")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", choices=["cpu", "cuda"])
    parser.add_argument("--output_dir", default="results/benchmarks")
    args = parser.parse_args(argv)
    args.arms = args.arms.split(",")
    for arm in args.arms:
        if arm not in ARMS:
            _refuse("--arms", arm, f"choose from {', '.join(ARMS)}")
    for part in args.accumulation.split(","):
        if not part.isdigit() or int(part) < 1 or args.batch_size % int(part):
            _refuse("--accumulation", part, f"give numbers that divide --batch_size {args.batch_size}")
    args.accumulation = [int(part) for part in args.accumulation.split(",")]
    return args


def _refuse(field: str, value: object, fix: str) -> None:
    print(f"{field} {value}: {fix}", file=sys.stderr)
    raise SystemExit(2)


if __name__ == "__main__":
    main()
