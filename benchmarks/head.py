"""``python -m benchmarks.head``: forward and backward of the output head, ours against every peer.

All contestants of a shape run in this process, in turn; medians. The head is frozen, as under LoRA, unless
``--train_head``. Ratios are to the best peer's time in the same run, and to G, one bare product ``hidden @ head.T``.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

import torch

from benchmarks import measure, tables
from benchmarks.contestants import CROSS_ENTROPY, DISTILLATION, FAMILY, MASKED, Contestant, Problem, family_by_hand
from uncertune.fused import linear_weighted_nll_with_stats
from uncertune.objectives import OBJECTIVES, FactoredTeacher, Head

SHAPES = {
    "smollm2": (576, 49152, None),
    "llama-3.2-1b": (2048, 128256, None),
    "gemma-2-2b": (2304, 256000, 30.0),
    "tiny": (16, 64, None),
}
RACES = {"cross-entropy": CROSS_ENTROPY + MASKED, "distillation": DISTILLATION, "family": FAMILY}
TOLERANCE = 0.03
"""Error of a gradient in bfloat16, relative in norm, beyond which a contestant is wrong and not timed."""


def main(argv: Sequence[str] | None = None) -> None:
    args = _parse(argv)
    device, dtype = args.device, getattr(torch, args.dtype)
    if device == "cuda" and not torch.cuda.is_available():
        _refuse("--device", "cuda", "this machine has no CUDA GPU; leave it out")
    if args.accuracy:
        print(tables.aligned(accuracy(device)))
        return
    command = "python -m benchmarks.head " + " ".join(sys.argv[1:] if argv is None else argv)
    name = "-".join(["head", *args.shapes, device, args.dtype] + ["trained"] * args.train_head)
    rows = []
    for shape in args.shapes:
        width, vocabulary, softcap = SHAPES[shape]
        for tokens in args.tokens:
            problem = Problem.make(tokens, width, vocabulary, softcap, dtype, device, args.train_head)
            for race in args.races:
                contestants = RACES[race]
                at = {"shape": shape, "T": tokens, "D": width, "V": vocabulary, "race": race}
                rows += [at | row for row in run_race(problem, contestants, args.repeats, device)]
                print(tables.aligned([row for row in rows if row["shape"] == shape and row["race"] == race]) + "\n")
            del problem
            tables.save(rows, args.output_dir, name, command, device)


def run_race(problem: Problem, contestants: Sequence[Contestant], repeats: int, device: str) -> list[dict]:
    """One row a contestant that can run here and is right; the others are named with their reason."""
    able = []
    for contestant in contestants:
        reason = contestant.why_not(problem) or _too_large(problem, contestant, device)
        reason = reason or _fails(contestant, problem)
        if reason:
            print(f"skipped: {contestant.name}: {reason}")
        else:
            able.append(contestant)

    def step(contestant: Contestant) -> None:
        problem.clear()
        contestant.run(problem).backward()

    def product() -> None:
        with torch.no_grad():
            problem.hidden @ problem.head.T

    functions = {contestant.name: (lambda c=contestant: step(c)) for contestant in able}
    seconds = measure.interleaved({"G": product, **functions}, repeats, device)
    peers = [seconds[contestant.name].median for contestant in able if not contestant.ours]
    rows = []
    for contestant in able:
        problem.clear()
        mebibytes = measure.peak_mebibytes(functions[contestant.name], device)
        taken = seconds[contestant.name]
        rows.append(
            {
                "contestant": contestant.name,
                "ms": round(taken.median * 1e3, 2),
                "iqr_ms": round(taken.spread * 1e3, 2),
                "to_best_peer": round(taken.median / min(peers), 3) if peers else "",
                "G": round(taken.median / seconds["G"].median, 2),
                "peak_MiB": round(mebibytes),
            }
        )
    problem.clear()
    return rows


def _too_large(problem: Problem, contestant: Contestant, device: str) -> str | None:
    """Whether dense logits would not fit: ten bytes a logit for plain cross-entropy, twice that with a teacher."""
    if not contestant.dense:
        return None
    need = (
        len(problem.labels)
        * problem.head.shape[0]
        * (24 if "KL" in contestant.name or "ASFT" in contestant.name else 12)
    )
    free = measure.available_bytes(device)
    return f"needs about {need / 2**30:.0f} GiB of {free / 2**30:.0f} GiB" if need > 0.8 * free else None


def _fails(contestant: Contestant, problem: Problem) -> str | None:
    """What is wrong with a contestant, or what a peer raises, in one line; an error of ours ends the benchmark."""
    if contestant.ours:
        return wrong(contestant, problem)
    try:
        contestant.run(problem).backward()
        return wrong(contestant, problem)
    except Exception as error:  # whatever a peer's library raises
        return f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}"
    finally:
        problem.clear()


def wrong(contestant: Contestant, problem: Problem) -> str | None:
    """Compare gradients on a small problem in this precision with those of plain logits in float64."""
    dtype, device, train = problem.hidden.dtype, problem.hidden.device.type, problem.head.requires_grad
    small, exact = (Problem.make(128, 128, 1024, problem.softcap, dtype, device, train) for _ in range(2))
    for name in ("hidden", "head", "teacher"):
        tensor = getattr(exact, name)
        setattr(exact, name, tensor.detach().double().requires_grad_(tensor.requires_grad))
    if contestant in FAMILY:
        family_by_hand(contestant, exact).backward()
        return _difference(contestant, small, exact)
    selected = {"uncertune masked_mle 25 %": exact.selected}.get(contestant.name)
    log_p = exact.logits(exact.hidden).log_softmax(-1)
    hard = -log_p.gather(-1, exact.labels[:, None])[:, 0]
    if contestant in DISTILLATION:
        soft = -(exact.logits(exact.teacher).softmax(-1).detach() * log_p).sum(-1)
        hard = torch.where(exact.selected, hard, soft)
    (hard if selected is None else hard * selected).mean().backward()
    return _difference(contestant, small, exact)


def _difference(contestant: Contestant, small: Problem, exact: Problem) -> str | None:
    """What is wrong with the gradients on ``small``, by those that ``exact`` holds already."""
    contestant.run(small).backward()
    for name in ("hidden", "head"):
        got, want = getattr(small, name).grad, getattr(exact, name).grad
        if want is not None:
            error = float((got.double() - want).norm() / want.norm())
            if not error < TOLERANCE:
                return f"its gradient in {name} is {error:.1%} off in norm"
    return None


def accuracy(device: str) -> list[dict]:
    """Error of the distillation gradient, relative in norm, where student = teacher + noise, against float64.

    ``usual``: logits in bfloat16, softmax in float32. Both see the same bfloat16 hidden states and head.
    """
    width, vocabulary, tokens = 576, 49152, 64
    rows = []
    for noise in (1e-1, 1e-2, 1e-3):
        problem = Problem.make(tokens, width, vocabulary, None, torch.bfloat16, device, False)
        teacher, head, labels = problem.teacher, problem.head, problem.labels
        # representable differences: a few hidden units move by one unit in the last place, the rest not at all
        generator = torch.Generator().manual_seed(1)
        move = noise * torch.randn(tokens, width, generator=generator).to(device)
        hidden = (teacher.float() + move).bfloat16().requires_grad_()
        student = hidden.detach().double().requires_grad_()
        q = (teacher.double() @ head.double().T).softmax(-1)
        (want,) = torch.autograd.grad(-(q * (student @ head.double().T).log_softmax(-1)).sum(), student)
        usual_q = (teacher @ head.T).float().softmax(-1)
        (usual,) = torch.autograd.grad(-(usual_q * (hidden @ head.T).float().log_softmax(-1)).sum(), hidden)
        targets = OBJECTIVES["distill"](labels, teacher=FactoredTeacher(teacher, Head(head)))
        loss, _ = linear_weighted_nll_with_stats(hidden, head, targets, labels)
        (ours,) = torch.autograd.grad(loss.sum(), hidden)
        errors = {
            name: f"{float((got.double() - want).norm() / want.norm()):.2%}"
            for name, got in (("usual", usual), ("uncertune", ours))
        }
        rows.append({"student - teacher": noise, **errors})
    return rows


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.head", description=__doc__)
    parser.add_argument("--shapes", default="smollm2,llama-3.2-1b,gemma-2-2b", help=f"of {', '.join(SHAPES)}")
    parser.add_argument("--tokens", default="1024", help="numbers of tokens, with commas")
    parser.add_argument("--races", default=",".join(RACES), help=f"of {', '.join(RACES)}")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--dtype", default="bfloat16", choices=["bfloat16", "float32"])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", choices=["cpu", "cuda"])
    parser.add_argument("--train_head", action="store_true", help="gradients in the head too")
    parser.add_argument("--accuracy", action="store_true", help="errors of bfloat16 gradients instead of times")
    parser.add_argument("--output_dir", default="results/benchmarks")
    parser.add_argument("--quick", action="store_true", help="one small shape, a minute")
    args = parser.parse_args(argv)
    if args.quick:
        args.shapes, args.tokens, args.repeats = "smollm2", "512", 3
    args.shapes, args.races = args.shapes.split(","), args.races.split(",")
    for field, known in (("shapes", SHAPES), ("races", RACES)):
        for name in getattr(args, field):
            if name not in known:
                _refuse(f"--{field}", name, f"choose from {', '.join(known)}")
    for tokens in args.tokens.split(","):
        if not tokens.isdigit() or int(tokens) < 8:
            _refuse("--tokens", tokens, "give numbers of at least 8")
    args.tokens = [int(tokens) for tokens in args.tokens.split(",")]
    if args.repeats < 1:
        _refuse("--repeats", args.repeats, "give at least 1")
    return args


def _refuse(field: str, value: object, fix: str) -> None:
    print(f"{field} {value}: {fix}", file=sys.stderr)
    raise SystemExit(2)


if __name__ == "__main__":
    main()
