"""``python -m benchmarks.uncertainty``: what Monte-Carlo dropout scoring costs beside bare forward passes.

The limit is as many plain forward passes (no dropout, logits of every token and nothing done with them), the same
document in the same batches; the model is in bfloat16 on CUDA, in float32 on a CPU. Also a naive computation that
stores samples × tokens × vocabulary, while that fits. All take turns in this process; medians.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from typing import Any

import torch

from benchmarks import measure, tables
from uncertune.models import resolve_model
from uncertune.uncertainty import mc_dropout, token_uncertainty

TEXT = "The quick brown fox jumps over the lazy dog. A farmer has 17 sheep, and all but 9 run away; how many are left? "


def main(argv: Sequence[str] | None = None) -> None:
    args = _parse(argv)
    from transformers import AutoModelForCausalLM, AutoTokenizer

    path = resolve_model(args.model)
    dtype = torch.bfloat16 if args.device == "cuda" else torch.float32
    model = AutoModelForCausalLM.from_pretrained(path, dtype=dtype).to(args.device).eval()
    ids = torch.tensor([(AutoTokenizer.from_pretrained(path)(TEXT * 200)["input_ids"])[: args.tokens]])
    ids = ids.to(args.device)
    rows: list[dict] = []
    if args.profile:
        print(tables.aligned(profile(contestants(model, ids, args.samples[0], args))))
        return
    for samples in args.samples:
        rows += run(model, ids, samples, args)
        print(tables.aligned(rows) + "\n")
    command = "python -m benchmarks.uncertainty " + " ".join(sys.argv[1:] if argv is None else argv)
    tables.save(rows, args.output_dir, f"uncertainty-{args.tokens}-{args.device}", command, args.device)


PARTS = {
    "products of matrices": ("aten::mm", "aten::addmm", "aten::bmm", "aten::baddbmm"),
    "attention, fused": ("aten::_scaled_dot_product",),
    "random numbers": ("aten::bernoulli_", "aten::native_dropout"),
    "exponentials, logarithms, sums": (
        "aten::_softmax",
        "aten::exp",
        "aten::log",
        "aten::sum",
        "aten::logsumexp",
        "aten::max",
    ),
}
"""Operators by what they are for; all others are element-wise: activations, norms, dropping, copies."""


def profile(functions: dict[str, Callable[[], object]]) -> list[dict]:
    """One row a part: processor time of every contestant, in ms, and its share of the first contestant's time."""
    spent: dict[str, dict[str, float]] = {}
    for name, function in functions.items():
        function()  # first touches
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as seen:
            function()
        spent[name] = dict.fromkeys([*PARTS, "other"], 0.0)
        for event in seen.key_averages():
            part = next((part for part, ops in PARTS.items() if event.key.startswith(ops)), "other")
            spent[name][part] += event.self_cpu_time_total / 1e3
    whole = sum(next(iter(spent.values())).values())
    return [
        {"part": part}
        | {f"{name}, ms": round(parts[part]) for name, parts in spent.items()}
        | {f"{name}, %": round(100 * parts[part] / whole, 1) for name, parts in spent.items()}
        for part in [*PARTS, "other"]
    ]


def contestants(
    model: Any, ids: torch.Tensor, samples: int, args: argparse.Namespace
) -> dict[str, Callable[[], object]]:
    """The limit, and ours."""
    return {
        "plain forward passes": lambda: plain(model, ids, samples, args.pass_tokens),
        "uncertune token_uncertainty": lambda: token_uncertainty(
            model, ids, ids, samples=samples, pass_tokens=args.pass_tokens, memory=args.memory_mib * 2**20, verify=False
        ),
    }


def run(model: Any, ids: torch.Tensor, samples: int, args: argparse.Namespace) -> list[dict]:
    """One row a contestant for one number of samples."""
    functions = contestants(model, ids, samples, args)
    need = samples * ids.shape[1] * model.get_output_embeddings().weight.shape[0] * 24
    if need < 0.5 * measure.available_bytes(args.device):
        functions["store S x T x V"] = lambda: naive(model, ids, samples, args.pass_tokens)
    else:
        print(f"skipped: store S x T x V: needs about {need / 2**30:.0f} GiB")
    seconds = measure.interleaved(functions, args.repeats, args.device)
    limit = seconds["plain forward passes"].median
    return [
        {
            "model": args.model,
            "T": ids.shape[1],
            "samples": samples,
            "contestant": name,
            "ms": round(taken.median * 1e3),
            "iqr_ms": round(taken.spread * 1e3),
            "tokens_per_s": round(samples * ids.shape[1] / taken.median),
            "speed_to_limit": round(limit / taken.median, 3),
            "peak_MiB": round(measure.peak_mebibytes(functions[name], args.device)),
        }
        for name, taken in seconds.items()
    ]


@torch.no_grad()
def plain(model: Any, ids: torch.Tensor, samples: int, pass_tokens: int) -> None:
    stack = max(1, min(samples, pass_tokens // ids.shape[1]))
    for first in range(0, samples, stack):
        model(ids.expand(min(stack, samples - first), -1), use_cache=False)


@torch.no_grad()
def naive(model: Any, ids: torch.Tensor, samples: int, pass_tokens: int) -> torch.Tensor:
    stack = max(1, min(samples, pass_tokens // ids.shape[1]))
    parts = []
    with mc_dropout(model, 0.1, 0):
        for first in range(0, samples, stack):
            parts.append(model(ids.expand(min(stack, samples - first), -1), use_cache=False).logits)
    p = torch.cat(parts).double().softmax(-1)
    return torch.special.entr(p.mean(0)).sum(-1) - torch.special.entr(p).sum(-1).mean(0)


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.uncertainty", description=__doc__)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--tokens", type=int, default=256, help="length of the document")
    parser.add_argument("--samples", default="10,100", help="numbers of dropout samples, with commas")
    parser.add_argument("--pass_tokens", type=int, default=4096)
    parser.add_argument("--memory_mib", type=int, default=1024)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--profile", action="store_true", help="where the time goes, on a CPU; writes nothing")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", choices=["cpu", "cuda"])
    parser.add_argument("--output_dir", default="results/benchmarks")
    args = parser.parse_args(argv)
    for part in args.samples.split(","):
        if not part.isdigit() or int(part) < 1:
            print(f"--samples {part}: give positive numbers", file=sys.stderr)
            raise SystemExit(2)
    args.samples = [int(part) for part in args.samples.split(",")]
    return args


if __name__ == "__main__":
    main()
