"""``python -m tools.gpu``: every stage of ``tools.gpu.stages`` with a time budget; results on disk when each ends.

    python -m tools.gpu --minutes 10 --output_dir gpu-results      # on a GPU
    python -m tools.gpu --small --output_dir /tmp/gpu              # every stage on the CPU, with tiny sizes
    python -m tools.gpu --dry --output_dir /tmp/gpu                # a GPU's settings on the CPU, cut to two steps
    python -m tools.gpu --dry --device cuda --output_dir /tmp/gpu  # the same on a GPU, before the long run

Stages that run many processes at once share the GPU better under CUDA MPS: ``nvidia-cuda-mps-control -d`` first.

A stage that fails, or whose packages are missing, is listed and the next one runs. ``summary.md`` and ``summary.json``
say what came of each, ``STAGE/`` holds its results and its output; ``results.zip`` is all of it in one file. Turn that
into tables with ``python -m tools.gpu.tables``. The exit status is 0 where every stage that could run succeeded.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.metadata
import importlib.util
import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from tools.fork import Fork
from tools.gpu import files
from tools.gpu.stages import STAGES, Place, Stage

ROOT = Path(__file__).resolve().parents[2]
LEAST_SECONDS = 5
SITE = "site"
"""Folder of the packages that were carried along."""


@dataclass
class Outcome:
    """What came of a stage: ``done``, ``failed``, ``out of time``, ``skipped`` or ``not reached``."""

    stage: str
    about: str
    outcome: str = "not reached"
    seconds: float = 0.0
    why: str = ""
    commands: list[str] = field(default_factory=list)


def main(argv: Sequence[str] | None = None) -> int:
    args = _parse(argv)
    out = args.output_dir.resolve()
    out.mkdir(parents=True, exist_ok=True)
    ends = time.monotonic() + 60 * args.minutes
    with contextlib.ExitStack() as stack:
        work = args.work or stack.enter_context(tempfile.TemporaryDirectory(prefix="uncertune-gpu-"))
        notes = _prepare(args, Path(work))
        outcomes = [Outcome(stage.name, stage.about) for stage in STAGES if stage.name in args.stages]
        for stage, outcome in zip([one for one in STAGES if one.name in args.stages], outcomes, strict=True):
            place = Place(out / stage.name, Path(work), args.small, args.dry, args.device)
            left, short = ends - time.monotonic(), args.small or args.dry  # then stages have no limit of their own
            _run(stage, outcome, place, left if short else min(stage.seconds, left - stage.spares))
            _write(out, outcomes, notes, short)
    print((out / "summary.md").read_text())
    return 1 if any(one.outcome in ("failed", "out of time") for one in outcomes) else 0


def _prepare(args: argparse.Namespace, work: Path) -> list[str]:
    """Files that were carried along, and in ``--small`` a tiny model. Returns what there is to say about them."""
    notes = list(files.unpack(args.files, work)) if not args.small else []
    if not (work / SITE).is_dir() and (complaint := files.install(work / "wheels", work / SITE)):
        notes.append(complaint)
    sys.path.insert(0, str(work / SITE))  # where the needs of a stage are looked for
    if carried := [work / name for name in (files.MODEL, files.STUDENT) if (work / name).is_file()]:
        sys.path.insert(0, str(ROOT / "src"))
        from uncertune.models import resolve_model

        for path in carried:
            resolve_model(str(path))  # its dense copy, once for all processes
    if args.small:
        sys.path.insert(0, str(ROOT / "tests"))
        from helpers.tiny import save_tiny

        save_tiny(work / "tiny", "llama", marked=True)
        rows = [json.dumps({"text": f"A text of another kind, number {number}."}) for number in range(4)]
        (work / "other.jsonl").write_text("\n".join(rows) + "\n")
    return notes


def _run(stage: Stage, outcome: Outcome, place: Place, seconds: float) -> None:
    missing = [name for name in stage.needs if importlib.util.find_spec(name) is None]
    if missing:
        outcome.outcome, outcome.why = "skipped", f"not installed: {', '.join(missing)}"
        return
    if seconds < LEAST_SECONDS:
        return
    place.out.mkdir(parents=True, exist_ok=True)
    begin = time.monotonic()
    outcome.outcome, ends = "done", begin + seconds
    commands = stage.commands(place)
    for number, group in enumerate([commands] if stage.together else [[one] for one in commands]):
        started = [
            _start(words, place, _log_name(number, k, stage.together), stage, outcome) for k, words in enumerate(group)
        ]
        for process in started:
            status = _status(process, max(ends - time.monotonic(), 0.1))
            if status is None:
                outcome.outcome, outcome.why = "out of time", f"after {seconds:.0f} s"
            elif status:
                outcome.outcome, outcome.why = "failed", f"exit status {status}; see {stage.name}/output*.txt"
        if outcome.outcome == "out of time":
            break
    outcome.seconds = round(time.monotonic() - begin, 1)
    if outcome.outcome == "done" and any("pytest" in words for words in commands):
        outcome.why = (place.out / "output.txt").read_text(encoding="utf-8").strip().splitlines()[-1]


def _log_name(number: int, member: int, together: bool) -> str:
    index = member if together else number
    return f"output{index or ''}.txt"


def _start(
    words: list[str], place: Place, log_name: str, stage: Stage, outcome: Outcome
) -> subprocess.Popen[bytes] | Fork:
    """Start a command; in ``--small`` all but pytest fork, since importing would take most of the time."""
    typed = " ".join(["python", *words[1:]])
    typed = typed.replace(f"{place.out.parent}/", "gpu-results/").replace(f"{place.work}/", "work/")
    outcome.commands.append(typed.replace(f"{ROOT}/", ""))
    print(f"{outcome.stage}: {outcome.commands[-1]}", file=sys.stderr, flush=True)
    log, environment = place.out / log_name, _environment(place.work)
    environment |= stage.environment if place.device == "cuda" else {}
    log.write_text(f"$ {outcome.commands[-1]}\n", encoding="utf-8")
    if place.small and "pytest" not in words:
        return Fork(words[1:], log, ROOT, environment)
    with log.open("a", encoding="utf-8") as file:
        return subprocess.Popen(
            words, stdout=file, stderr=subprocess.STDOUT, cwd=ROOT, env=environment, start_new_session=True
        )


def _status(process: subprocess.Popen[bytes] | Fork, seconds: float) -> int | None:
    """The exit status of a command; None where its time was up, and it was stopped with its children."""
    try:
        return process.wait(timeout=seconds)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        return None


def _environment(work: Path) -> dict[str, str]:
    paths = [str(work / SITE), str(ROOT / "src"), str(ROOT), os.environ.get("PYTHONPATH", "")]
    given = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "OMP_WAIT_POLICY": "passive"}
    if (work / "data").is_dir():
        given["UNCERTUNE_DATA"] = str(work / "data")
    return {**os.environ, **given, "PYTHONPATH": os.pathsep.join(filter(None, paths))}


def _write(out: Path, outcomes: list[Outcome], notes: list[str], small: bool) -> None:
    about = {"machine": _machine(), "small": small, "notes": notes, "stages": [asdict(one) for one in outcomes]}
    _whole(out / "summary.json", json.dumps(about, indent=1) + "\n")
    lines = ["| Stage | What | Outcome | Seconds | |", "|:--|:--|:--|--:|:--|"]
    lines += [f"| {o.stage} | {o.about} | {o.outcome} | {o.seconds:.0f} | {o.why} |" for o in outcomes]
    head = "\n".join(f"{name}: {value}" for name, value in about["machine"].items())
    _whole(out / "summary.md", "\n".join([head, *notes, "", *lines, ""]))
    packed = out / "results.zip.new"
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in sorted(out.rglob("*")):
            if path.is_file() and _comes_back(path.relative_to(out)):
                archive.write(path, path.relative_to(out))
    packed.replace(out / "results.zip")


def _comes_back(path: Path) -> bool:
    """Small results only: tables, figures, records and answers; no weights, no data, no vocabulary, no sample."""
    kept = (".csv", ".json", ".jsonl", ".md", ".png", ".svg", ".txt", ".yaml")
    apart = any(part in ("data", "teacher_cache") or part.startswith("checkpoint-") for part in path.parts)
    large = path.name == "tokenizer.json" or path.name.endswith(".samples.jsonl")
    return path.suffix in kept and not apart and not large


def _whole(path: Path, text: str) -> None:
    new = path.with_name(path.name + ".new")
    new.write_text(text, encoding="utf-8")
    new.replace(path)


def _machine() -> dict[str, str]:
    import torch

    out = {"python": platform.python_version(), "torch": torch.__version__}
    for name in ("transformers", "trl", "peft", "triton", "liger_kernel"):
        if importlib.util.find_spec(name):
            try:
                out[name] = importlib.metadata.version(name.replace("_", "-"))
            except importlib.metadata.PackageNotFoundError:
                continue
    out["device"] = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU only: no GPU was used"
    return out


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tools.gpu", description=__doc__.split("\n")[0])
    names = [stage.name for stage in STAGES]
    parser.add_argument("--minutes", type=float, default=10, help="after which no stage goes on")
    parser.add_argument("--output_dir", type=Path, default=Path("gpu-results"))
    parser.add_argument("--files", type=Path, default=Path("gpu"), help="what tools.gpu.files packed")
    parser.add_argument("--stages", default=",".join(names), help="some of them, with commas")
    parser.add_argument(
        "--work", type=Path, help="keep models and packages here for a next command; without it deleted"
    )
    parser.add_argument("--small", action="store_true", help="every stage on the CPU with tiny sizes")
    parser.add_argument("--dry", action="store_true", help="with a GPU's settings, cut to two steps")
    parser.add_argument("--device", choices=["cpu", "cuda"], help="cpu with --small or --dry, else cuda")
    args = parser.parse_args(argv)
    args.device = args.device or ("cpu" if args.small or args.dry else "cuda")
    args.stages = args.stages.split(",")
    for name in args.stages:
        if name not in names:
            parser.error(f"--stages {name}: choose from {', '.join(names)}")
    if args.device == "cpu" and not args.small and not args.dry:
        parser.error("--device cpu: only with --small or --dry")
    if args.device == "cuda":
        import torch

        if not torch.cuda.is_available():
            parser.error("no CUDA GPU here: use --small or --dry to try every stage on the CPU")
    return args


if __name__ == "__main__":
    sys.exit(main())
