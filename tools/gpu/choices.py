"""What the fused head may choose from, measured: ``python -m tools.gpu.choices``, a stage of ``python -m tools.gpu``.

Bytes of logits in memory; blocks and warps of the Triton kernels; Triton, ``torch.compile`` or
plain functions. Each line is forward and backward of one head, medians of repeats in turn, and the peak of memory it
adds.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any
from unittest import mock

import torch

from benchmarks import measure, tables
from benchmarks.contestants import Problem, ours_distillation, ours_mle
from benchmarks.head import SHAPES
from uncertune.fused import chunk, elementwise, kernels, projection

MIB = 2**20
LOSSES: dict[str, Callable[[Problem], Any]] = {"mle": ours_mle, "masked_mle_distill": ours_distillation}
FUNCTIONS: dict[str, Callable[[], Any]] = {"compiled": kernels._compiled, "plain": lambda: elementwise}
DEFAULT: dict[str, Any] = {}


def choices(device: str) -> list[dict[str, Any]]:
    """The defaults, then one thing changed at a time."""
    out = [DEFAULT]
    out += [{"logits_mib": size} for size in (1024, 2048, 8192)]
    out += [{"functions": "plain"}]
    if device == "cuda":
        out += [{"functions": "compiled"}]
        out += [{"lanes": lanes, "warps": warps} for lanes, warps in ((1024, 4), (2048, 4), (2048, 8), (4096, 8))]
    return out


@contextlib.contextmanager
def chosen(choice: dict[str, Any]) -> Iterator[None]:
    """The head with a choice in force."""
    with contextlib.ExitStack() as stack:

        def put(target: Any, name: str, value: Any) -> None:
            stack.enter_context(mock.patch.object(target, name, value))

        if "logits_mib" in choice:
            put(projection, "LOGITS_BYTES", dict.fromkeys(projection.LOGITS_BYTES, choice["logits_mib"] * MIB))
            put(projection, "LOGITS_SHARE", 1)
        if "functions" in choice:
            put(chunk, "kernels", lambda raw: FUNCTIONS[choice["functions"]]())
        if "lanes" in choice:
            from uncertune.fused import triton as by_hand

            put(by_hand, "LANES", choice["lanes"])
            put(by_hand, "WARPS", choice["warps"])
        yield


def run(shape: str, loss: str, tokens: int, device: str, repeats: int) -> list[dict[str, Any]]:
    """One row a choice (``contestant``) for a loss (``race``), with its time beside the default's."""
    width, vocabulary, softcap = SHAPES[shape]
    problem = Problem.make(tokens, width, vocabulary, softcap, torch.bfloat16, device, False)

    def step(choice: dict[str, Any]) -> None:
        problem.clear()
        with chosen(choice):
            LOSSES[loss](problem).backward()

    named = {_name(choice): (lambda choice=choice: step(choice)) for choice in choices(device)}
    taken = measure.interleaved(named, repeats, device)
    base, rows = taken[_name(DEFAULT)].median, []
    for name, one in taken.items():
        about = {"shape": shape, "T": tokens, "race": loss, "contestant": name, "ms": round(one.median * 1e3, 2)}
        about |= {"iqr_ms": round(one.spread * 1e3, 2), "to_default": round(one.median / base, 3)}
        rows.append(about | {"peak_MiB": round(measure.peak_mebibytes(named[name], device))})
    return rows


def _name(choice: dict[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in choice.items()) or "default"


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m tools.gpu.choices", description=__doc__.split("\n")[0])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--output_dir", required=True)
    parser.add_argument("--shapes", default="llama-3.2-1b,smollm2,gemma-2-2b")
    parser.add_argument("--tokens", type=int, default=8192)
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args(argv)
    words = sys.argv[1:] if argv is None else argv
    rows: list[dict[str, Any]] = []
    for shape, loss in itertools.product(args.shapes.split(","), LOSSES):
        rows += run(shape, loss, args.tokens, args.device, args.repeats)
        print(tables.aligned(rows) + "\n", flush=True)
        command = "python -m tools.gpu.choices " + " ".join(words)
        tables.save(rows, args.output_dir, f"choices-{args.device}", command, args.device)


if __name__ == "__main__":
    main()
