"""The files that travel to a machine without a network: models, data and wheels, in pieces.

    python -m tools.gpu.files --model smollm2.gguf --student qwen.gguf --data DATA --wheels WHEELS --output_dir gpu

writes ``gpu/1``, ``gpu/2``, …, each of at most ``--mib`` MiB, and ``gpu/1/manifest.json`` with the size and SHA-256 of
every file. On the other machine ``python -m tools.gpu`` checks them, joins what was cut and installs the wheels.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

MANIFEST = "manifest.json"
MODEL = "smollm2-135m.gguf"
STUDENT = "qwen2.5-coder-0.5b-instruct.gguf"
TOKENIZER = "tokenizer"
DATA = (
    "gsm8k_train",
    "gsm8k_test",
    "alpaca_52k",
    "alpaca_eval",
    "ifeval",
    "ifeval_gpt4_responses",
    "wikitext2_raw_test",
)
MIB = 2**20


@dataclass(frozen=True)
class Piece:
    """A part of a file: where it lies in the folder, and which bytes of which file it holds."""

    path: str
    file: str
    start: int
    size: int
    sha256: str


def pack(sources: Sequence[tuple[Path, str]], out: Path, limit: int) -> list[Piece]:
    """Copy files (source, name) into numbered folders of at most ``limit`` bytes; what does not fit is cut."""
    pieces: list[Piece] = []
    folder, room = 1, limit
    for source, name in sources:
        content, start = source.read_bytes(), 0
        while start < len(content) or (start == 0 and not content):
            if room <= 0:
                folder, room = folder + 1, limit
            part = content[start : start + room]
            path = f"{folder}/{name}" if len(part) == len(content) else f"{folder}/{name}.part{len(pieces):03d}"
            (out / path).parent.mkdir(parents=True, exist_ok=True)
            (out / path).write_bytes(part)
            pieces.append(Piece(path, name, start, len(part), hashlib.sha256(part).hexdigest()))
            start, room = start + len(part), room - len(part)
            if not content:
                break
    (out / "1").mkdir(parents=True, exist_ok=True)
    (out / "1" / MANIFEST).write_text(json.dumps([asdict(piece) for piece in pieces], indent=1))
    return pieces


def unpack(folder: Path, out: Path) -> Iterator[str]:
    """Join the pieces in ``folder`` into ``out``; yields a line for each file that is missing or damaged."""
    manifest = folder / "1" / MANIFEST
    if not manifest.is_file():
        yield f"{manifest} is missing: the small model, data and wheels are those of this machine"
        return
    by_file: dict[str, list[Piece]] = {}
    for entry in json.loads(manifest.read_text()):
        by_file.setdefault(entry["file"], []).append(Piece(**entry))
    for name, pieces in by_file.items():
        content, bad = b"", ""
        for piece in sorted(pieces, key=lambda one: one.start):
            path = folder / piece.path
            part = path.read_bytes() if path.is_file() else None
            if part is None or hashlib.sha256(part).hexdigest() != piece.sha256:
                bad = f"{path} is {'missing' if part is None else 'damaged'}: {name} cannot be used"
                break
            content += part
        if bad:
            yield bad
            continue
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        (out / name).write_bytes(content)


def install(wheels: Path, target: Path) -> str | None:
    """Install every wheel of a folder into another without a network; a line where that fails."""
    found = sorted(str(path) for path in wheels.glob("*.whl"))
    if not found:
        return None
    options = ["--no-index", "--no-deps", "--no-compile", "--no-cache-dir", "--upgrade", "--target", str(target)]
    command = [sys.executable, "-m", "pip", "install", "-q", *options, *found]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return None if done.returncode == 0 else f"wheels: {(done.stderr.strip().splitlines() or ['failed'])[-1]}"


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m tools.gpu.files", description=__doc__)
    parser.add_argument("--model", type=Path, help=f"the GGUF file of the small model, which travels as {MODEL}")
    parser.add_argument("--student", type=Path, help=f"the GGUF file of a larger model, which travels as {STUDENT}")
    parser.add_argument("--tokenizer", type=Path, help="folder of the small model's tokenizer, for random models")
    parser.add_argument("--data", type=Path, help="folder of data files, as UNCERTUNE_DATA names it")
    parser.add_argument("--mixed", type=Path, help="folder of what tools.gpu.mixture wrote")
    parser.add_argument("--wheels", type=Path, help="folder of wheels that the other machine lacks")
    parser.add_argument("--mib", type=int, default=56, help="largest folder")
    parser.add_argument("--output_dir", type=Path, default=Path("gpu"))
    args = parser.parse_args(argv)
    sources: list[tuple[Path, str]] = []
    if args.tokenizer:
        sources += [(path, f"{TOKENIZER}/{path.name}") for path in sorted(args.tokenizer.iterdir())]
    if args.data:
        sources += [(path, f"data/{path.name}") for name in DATA for path in sorted(args.data.glob(f"{name}.*"))]
    if args.mixed:
        sources += [(path, f"data/{path.relative_to(args.mixed)}") for path in sorted(args.mixed.rglob("*.jsonl"))]
    if args.wheels:
        sources += [(path, f"wheels/{path.name}") for path in sorted(args.wheels.glob("*.whl"))]
    models = [(args.model, MODEL), (args.student, STUDENT)]  # last: all else is in the first folder
    sources += [(path, name) for path, name in models if path]
    pieces = pack(sources, args.output_dir, args.mib * MIB)
    for number in sorted({piece.path.split("/")[0] for piece in pieces}, key=int):
        size = sum(piece.size for piece in pieces if piece.path.startswith(f"{number}/"))
        print(f"{args.output_dir / number}: {size / MIB:.1f} MiB")


if __name__ == "__main__":
    main()
