"""A few steps through accelerate's FSDP2 file, in fp16 with a loss scaler, and on a 4-bit base, against the plain run.

``python -m tools.gpu.launch`` is a stage of ``python -m tools.gpu``.

Writes ``launch.json``: the loss of every step of each run, and the largest relative difference from the plain one. With
``--small`` the plain run and one process of accelerate on the CPU are compared; 4 bits need CUDA.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FSDP2 = ROOT / "src" / "uncertune" / "recipes" / "accelerate" / "fsdp2.yaml"
STEPS = 4
TOLERANCE = {"fsdp2": 0.02, "fp16": 0.02, "4-bit": 0.2, "one process": 1e-5}
"""Largest relative difference of a step's loss: half-precision sums, 4-bit weights, and the same arithmetic."""


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tools.gpu.launch", description=__doc__.split("\n")[0])
    parser.add_argument("--model", required=True)
    parser.add_argument("--output_dir", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--small", action="store_true")
    args = parser.parse_args()
    accelerate = [sys.executable, "-m", "accelerate.commands.launch", "--num_processes", "1"]
    module = ["-m", "uncertune.cli", "train"]
    launches = {"plain": [sys.executable, *module]}
    extra: dict[str, list[str]] = {}
    if args.small:
        launches["one process"] = [*accelerate, "--cpu", "--num_machines", "1", "--mixed_precision", "no", *module]
    else:
        launches["fsdp2"] = [*accelerate, "--config_file", str(FSDP2), *module]
        launches["fp16"], extra["fp16"] = [sys.executable, *module], ["--fp16", "true", "--bf16", "false"]
        if importlib.util.find_spec("bitsandbytes"):
            launches["4-bit"], extra["4-bit"] = [sys.executable, *module], ["--load_in_4bit", "true"]
        else:
            print("4-bit: bitsandbytes is not installed: left out")
    started = {name: _start(words, name, args, extra.get(name, [])) for name, words in launches.items()}
    losses = {name: _losses(process, name, args.work) for name, process in started.items()}
    plain = losses["plain"]
    found = {
        name: {"losses": own, "difference": _difference(own, plain), "tolerance": TOLERANCE.get(name)}
        for name, own in losses.items()
    }
    (args.output_dir / "launch.json").write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps(found, indent=1))
    bounded = [one for one in found.values() if one["tolerance"] is not None]
    return int(not all(one["difference"] <= one["tolerance"] for one in bounded))


def _folder(work: Path, name: str) -> Path:
    return work / name.replace(" ", "-")


def _start(launch: list[str], name: str, args: argparse.Namespace, extra: list[str]) -> subprocess.Popen[str]:
    command = [
        *launch,
        "--model_name_or_path",
        args.model,
        "--dataset_name",
        "word_problems",
        "--objective",
        "masked_mle",
    ]
    command += ["--max_train_samples", "32", "--max_steps", str(STEPS), "--per_device_train_batch_size", "4"]
    command += ["--use_peft", "--learning_rate", "1e-3", "--report_to", "none", "--save_strategy", "no"]
    command += ["--output_dir", str(_folder(args.work, name)), "--probe_steps", "0", "--overwrite", *extra]
    if args.small:
        command += ["--bf16", "false", "--use_cpu", "true"]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def _losses(process: subprocess.Popen[str], name: str, work: Path) -> list[float]:
    """The loss of every step; nothing where the run failed, and what it said."""
    _, said = process.communicate()
    if process.returncode:
        print(f"{name}: exit status {process.returncode}\n{said[-3000:]}")
        return []
    rows = [json.loads(line) for line in (_folder(work, name) / "metrics.jsonl").read_text().splitlines()]
    return [row["loss"] for row in rows if row["kind"] == "step"]


def _difference(own: list[float], plain: list[float]) -> float:
    """The largest relative difference of a step's loss; infinite where a run has other steps."""
    if len(own) != len(plain) or not plain:
        return float("inf")
    return max(abs(one - other) / abs(other) for one, other in zip(own, plain, strict=True))


if __name__ == "__main__":
    sys.exit(main())
