"""Outputs of a frozen model for the response tokens, computed once and cached on disk (SPEC B6).

Three kinds, each with a few numbers per token:

    hidden   the last hidden states in bfloat16: with the head, p_ref over the full vocabulary
    topk     the k most probable tokens and their log-probabilities; the remaining mass is the tail
    loss     the loss of the label, −log p(y_t), which the metric ``rho`` needs of its reference

Shape legend: ``T`` response tokens, ``D`` hidden size, ``K`` tokens kept of the vocabulary ``V``.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import xxhash
from torch import Tensor

from uncertune.errors import UserError
from uncertune.fused import linear_token_stats, linear_top_k
from uncertune.objectives import FactoredTeacher, Head, SparseTeacher
from uncertune.teachers.shards import HEAD, Shards, shard_name

Kind = Literal["hidden", "topk", "loss"]
STORED = torch.bfloat16
SHARD_TOKENS = 2**16
"""Most input tokens of a shard, which is the work that a kill loses."""
SHARD_BYTES = 2**28


@dataclass(frozen=True)
class Document:
    """A document to cache: its hash, its length, its response tokens, and its place in the data."""

    key: str
    length: int
    tokens: int
    where: Any = None


def bytes_per_token(kind: Kind, width: int) -> int:
    """Bytes on disk for one response token; ``width`` is D of ``hidden`` and K of ``topk``."""
    return {"hidden": 2 * width, "topk": 8 * width, "loss": 4}[kind]


def columns_of(kind: Kind, rows: FactoredTeacher, labels: Tensor, top_k: int) -> dict[str, Tensor]:
    """The columns to cache of a teacher's rows (T, D) and labels (T,)."""
    if kind == "hidden":
        return {"hidden": rows.hidden.to(STORED)}
    if kind == "topk":
        best = linear_top_k(rows.hidden, rows.head, top_k)
        return {"ids": best.ids.to(torch.int32), "log_probs": best.probs.float().log()}
    return {"loss": linear_token_stats(rows.hidden, rows.head, labels).loss.float()}


def sparse_teacher(columns: dict[str, Tensor]) -> SparseTeacher:
    """The sparse teacher from the columns of a ``topk`` cache."""
    return SparseTeacher(columns["ids"].long(), columns["log_probs"].exp())


# ---- the head


def head_digest(head: Head) -> str:
    """Hash of an output head (weight, bias, soft-cap and scale), 32 hex digits."""
    weight = head.weight
    digest = xxhash.xxh3_128(f"{weight.dtype} {tuple(weight.shape)} {head.softcap} {head.scale}".encode())
    for tensor in (weight, head.bias):
        if tensor is not None:
            digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def write_head(shards: Shards, rows: FactoredTeacher) -> None:
    """Store the teacher's head with its hidden states, once."""
    head = rows.head
    tensors = {"weight": head.weight} | ({} if head.bias is None else {"bias": head.bias})
    about = {"digest": head_digest(head), "softcap": head.softcap, "scale": head.scale}
    with shards.claim(HEAD) as mine:
        if mine and not shards.has(HEAD):
            shards.write_file(HEAD, tensors, **about)


# ---- filling


def check_space(folder: Path, documents: Iterable[Document], per_token: int, extra: int = 0) -> str:
    """One line with the size of the cache and the free space. Raises UserError if it does not fit."""
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    tokens = sum(document.tokens for document in documents)
    need, free = tokens * per_token + extra, shutil.disk_usage(there).free
    line = f"{tokens:,} tokens of {per_token:,} bytes, {_size(need)} to write, {_size(free)} free"
    if need > free:
        raise UserError(f"teacher_cache_dir {str(folder)!r}: {line}: choose another folder, or set max_train_samples")
    return line


def fill(
    shards: Shards,
    documents: Sequence[Document],
    compute: Callable[[Sequence[Document]], dict[str, Tensor]],
    *,
    per_token: int,
    batch_size: int,
    gather: Callable[[Any], list[Any]],
    progress: Callable[[int], Any],
) -> None:
    """Compute and write the missing ``documents``; all ranks call this together.

    Documents are split into shards in order, so a killed run resumes with the same shards, and the bytes depend neither
    on when it was killed nor on the number of ranks. Each rank, and each other run that fills the same folder, takes
    the next unclaimed shard. ``compute`` runs equally often on every rank, which sharded models require. ``gather``
    returns the values of all ranks, ``progress`` receives the number of response tokens done.
    """
    shards.begin()
    groups = list(_groups(documents, per_token))
    while True:
        shards.refresh()
        groups = [group for group in groups if any(one.key not in shards for one in group)]
        with ExitStack() as claims:
            mine = _claimed(groups, shards, claims)
            batches = [mine[start : start + batch_size] for start in range(0, len(mine), batch_size)]
            state = gather((len(batches), bool(groups)))
            if not any(count for count, _ in state):
                if not any(missing for _, missing in state):
                    return
                time.sleep(0.5)  # another run is computing the rest
                continue
            pieces = []
            for turn in range(max(count for count, _ in state)):
                batch = batches[turn] if turn < len(batches) else documents[:1]
                out = {name: column.cpu() for name, column in compute(batch).items()}
                if turn < len(batches):
                    pieces.append(out)
                    progress(sum(one.tokens for one in batch))
            if pieces:
                columns = {name: torch.cat([piece[name] for piece in pieces]) for name in pieces[0]}
                shards.write([one.key for one in mine], [one.tokens for one in mine], columns)


def _claimed(groups: Sequence[list[Document]], shards: Shards, claims: ExitStack) -> list[Document]:
    """The missing documents of the first unclaimed group, longest first; empty if all groups are claimed."""
    for group in groups:
        missing = sorted((one for one in group if one.key not in shards), key=lambda one: -one.length)
        with ExitStack() as attempt:
            if attempt.enter_context(shards.claim(shard_name([one.key for one in missing]))):
                shards.refresh()  # it may have been written since
                if all(one.key not in shards for one in missing):
                    claims.push(attempt.pop_all())
                    return missing
    return []


def _groups(documents: Iterable[Document], per_token: int) -> Iterator[list[Document]]:
    """Documents in order, each once, in groups of at most ``SHARD_TOKENS`` and ``SHARD_BYTES``, or singly."""
    group: list[Document] = []
    length = size = 0
    for one in {document.key: document for document in documents}.values():
        if group and (length + one.length > SHARD_TOKENS or size + one.tokens * per_token > SHARD_BYTES):
            yield group
            group, length, size = [], 0, 0
        group.append(one)
        length, size = length + one.length, size + one.tokens * per_token
    if group:
        yield group


def _size(count: float) -> str:
    units = ("B", "kB", "MB", "GB", "TB")
    power = min(len(units) - 1, max(0, len(str(int(count))) - 1) // 3)
    return f"{count / 1000**power:.3g} {units[power]}"
