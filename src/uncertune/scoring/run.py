"""Scoring document by document on every process, so that an interrupted run can be resumed.

A folder of scores has ``run.json`` (what the scores depend on), ``parts/`` while it is unfinished (one line per
document and rate), and ``tokens.parquet`` once it is complete: document, position, token, text, rate, and the five
quantities in nats.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch

from uncertune.data.rows import Row
from uncertune.errors import UserError
from uncertune.models import fingerprint
from uncertune.models.loading import adapter_digest
from uncertune.runs.files import atomic_file, write_atomically
from uncertune.runs.notes import progress
from uncertune.scoring.rows import Prepared
from uncertune.scoring.settings import Settings
from uncertune.uncertainty import token_uncertainty

TOKENS = "tokens.parquet"
QUANTITIES = ("epistemic", "aleatoric", "total", "loss", "entropy")
_PARTS, _RUN = "parts", "run.json"
_OURS = (TOKENS, _RUN, "config.yaml", "environment.json", "summary.json", "summary.md", "tokens.html")
_FIGURES = ("correlations", "losses", "dropout")

# Settings that change the numbers; the others change figures, speed or paths.
_NUMBERS = ("samples", "places", "seed", "max_length", "dtype", "attn_implementation", "pass_tokens")


def identity(settings: Settings, prepared: Prepared) -> dict[str, Any]:
    """Everything that the scores depend on, to compare with a folder's."""
    digest = hashlib.blake2b(digest_size=8)
    for row in prepared.rows:
        digest.update(json.dumps([row.input_ids, row.labels]).encode())
    numbers = {name: value for name, value in asdict(settings).items() if name in _NUMBERS}
    adapter = settings.adapter
    if adapter is not None:
        adapter = adapter_digest(adapter) or adapter
    return {
        "model": fingerprint(prepared.model),
        "adapter": adapter,
        "data": digest.hexdigest(),
        "rates": list(settings.rate),
        **numbers,
        "places": ",".join(settings.places) if settings.places else None,
    }


def clear(folder: Path) -> None:
    """Delete the files of a scoring run, and nothing else."""
    if not (folder / _RUN).is_file():
        return
    shutil.rmtree(folder / _PARTS, ignore_errors=True)
    for name in (*_OURS, *(f"{figure}.{suffix}" for figure in _FIGURES for suffix in ("png", "svg"))):
        (folder / name).unlink(missing_ok=True)


def begin(folder: Path, mine: dict[str, Any]) -> None:
    """Claim the folder for these scores. Raises UserError if it has others."""
    path = folder / _RUN
    if path.is_file():
        theirs = json.loads(path.read_text(encoding="utf-8"))
        for name, value in mine.items():
            if theirs.get(name) != value:
                raise UserError(
                    f"output_dir {str(folder)!r} holds scores with {name} {theirs.get(name)!r}, here it is {value!r}: "
                    "choose another folder, or --overwrite"
                )
    elif any(entry.name != ".lock" for entry in folder.iterdir()):
        raise UserError(f"output_dir {str(folder)!r} is not empty and holds no scores: choose another folder")
    (folder / _PARTS).mkdir(exist_ok=True)
    for part in (folder / _PARTS).glob("*.jsonl"):
        whole = part.read_bytes()
        part.write_bytes(whole[: whole.rfind(b"\n") + 1])  # a crash may have truncated the last line
    write_atomically(path, json.dumps(mine, indent=1))


def score(folder: Path, settings: Settings, prepared: Prepared) -> None:
    """Score the missing documents of this process, and write each one as it is done."""
    done = {(part["rate"], part["document"]) for part in _parts(folder)}
    rank, processes = prepared.accelerator.process_index, prepared.accelerator.num_processes
    prepared.accelerator.wait_for_everyone()  # all have read before one writes
    todo = [(rate, row) for rate in settings.rate for row in prepared.rows if (rate, row.number) not in done]
    mine = todo[rank::processes]
    bar = progress(len(mine) * settings.samples, "scoring", "samples", disable=rank > 0 or not mine)
    checked = False
    with open(folder / _PARTS / f"{rank}.jsonl", "a", encoding="utf-8") as file:
        for rate, row in mine:
            part = _score_one(prepared, row, rate, settings, bar, verify=not checked)
            checked = True
            file.write(json.dumps(part) + "\n")
            file.flush()
            os.fsync(file.fileno())
    bar.close()
    prepared.accelerator.wait_for_everyone()


def _score_one(
    prepared: Prepared, row: Row, rate: float, settings: Settings, bar: Any, *, verify: bool
) -> dict[str, Any]:
    before = bar.n

    def progress(done: int, of: int) -> None:
        bar.update(before + done * settings.samples // of - bar.n)

    found = token_uncertainty(
        prepared.model,
        torch.tensor([row.input_ids]),
        torch.tensor([row.labels]),
        samples=settings.samples,
        rate=rate,
        seed=settings.seed,
        places=settings.places,
        memory=settings.memory_mib * 2**20,
        pass_tokens=settings.pass_tokens,
        verify=verify,
        progress=progress,
    )
    values = {name: getattr(found, name).tolist() for name in QUANTITIES}
    return {"rate": rate, "document": row.number, "position": found.position[:, 1].tolist(), **values}


def _parts(folder: Path) -> Iterator[dict[str, Any]]:
    """Every document written so far."""
    for path in sorted((folder / _PARTS).glob("*.jsonl")):
        for line in path.read_text(encoding="utf-8").splitlines():
            yield json.loads(line)


def is_complete(folder: Path) -> bool:
    return (folder / TOKENS).is_file()


def finish(folder: Path, prepared: Prepared) -> pa.Table:
    """Write all parts as one table, in the order of rates, documents and positions; then delete the parts."""
    rows = {row.number: row for row in prepared.rows}
    parts = {(part["rate"], part["document"]): part for part in _parts(folder)}
    rates = json.loads((folder / _RUN).read_text(encoding="utf-8"))["rates"]
    columns: dict[str, list[Any]] = {name: [] for name in ("document", "position", "token", "text", "rate")}
    columns |= {name: [] for name in QUANTITIES}
    texts: dict[int, str] = {}
    for rate in rates:
        for number, row in rows.items():
            part = parts[rate, number]
            count = len(part["position"])
            tokens = [row.input_ids[position] for position in part["position"]]
            columns["document"] += [number] * count
            columns["position"] += part["position"]
            columns["token"] += tokens
            columns["text"] += [token_text(prepared.tokenizer, token, texts) for token in tokens]
            columns["rate"] += [rate] * count
            for name in QUANTITIES:
                columns[name] += part[name]
    table = pa.table(columns)
    with atomic_file(folder / TOKENS) as temporary:
        pq.write_table(table, temporary, compression="zstd")
    shutil.rmtree(folder / _PARTS)
    return table


def token_text(tokenizer: Any, token: int, known: dict[int, str]) -> str:
    """One token decoded alone; part of a character decodes to U+FFFD."""
    if token not in known:
        known[token] = tokenizer.decode([token])
    return known[token]
