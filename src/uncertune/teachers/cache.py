"""What a frozen model says of the response tokens, computed once and kept on disk (SPEC B6).

Three kinds, each a few numbers a token:

    hidden   the last hidden states in bfloat16: with the head, p_ref over the full vocabulary
    topk     the k most probable tokens and their log-probabilities; what they leave of 1 is the tail
    loss     the loss of the label, −log p(y_t): all that the metric ``rho`` asks of its reference

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
"""Input tokens that a shard is computed from, at most: what a kill costs."""
SHARD_BYTES = 2**28


@dataclass(frozen=True)
class Document:
    """A document that is to be cached: its hash, its length, its response tokens, and where its text is found."""

    key: str
    length: int
    tokens: int
    where: Any = None


def bytes_per_token(kind: Kind, width: int) -> int:
    """Bytes on disk for one response token; ``width`` is D of ``hidden`` and K of ``topk``."""
    return {"hidden": 2 * width, "topk": 8 * width, "loss": 4}[kind]


def columns_of(kind: Kind, rows: FactoredTeacher, labels: Tensor, top_k: int) -> dict[str, Tensor]:
    """What is kept of a teacher's rows (T, D) and labels (T,)."""
    if kind == "hidden":
        return {"hidden": rows.hidden.to(STORED)}
    if kind == "topk":
        best = linear_top_k(rows.hidden, rows.head, top_k)
        return {"ids": best.ids.to(torch.int32), "log_probs": best.probs.float().log()}
    return {"loss": linear_token_stats(rows.hidden, rows.head, labels).loss.float()}


def sparse_teacher(columns: dict[str, Tensor]) -> SparseTeacher:
    """The teacher of a ``topk`` cache."""
    return SparseTeacher(columns["ids"].long(), columns["log_probs"].exp())


# ---- the head


def head_digest(head: Head) -> str:
    """32 hex digits of an output head: every byte of weight and bias, soft-cap and scale."""
    weight = head.weight
    digest = xxhash.xxh3_128(f"{weight.dtype} {tuple(weight.shape)} {head.softcap} {head.scale}".encode())
    for tensor in (weight, head.bias):
        if tensor is not None:
            digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def write_head(shards: Shards, rows: FactoredTeacher) -> None:
    """Keep the teacher's head beside its hidden states, once."""
    head = rows.head
    tensors = {"weight": head.weight} | ({} if head.bias is None else {"bias": head.bias})
    about = {"digest": head_digest(head), "softcap": head.softcap, "scale": head.scale}
    with shards.claim(HEAD) as mine:
        if mine and not shards.has(HEAD):
            shards.write_file(HEAD, tensors, **about)


# ---- filling


def check_space(folder: Path, documents: Iterable[Document], per_token: int, extra: int = 0) -> str:
    """One line of what is to be written and how much room there is. Raises UserError where it does not fit."""
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    tokens = sum(document.tokens for document in documents)
    need, free = tokens * per_token + extra, shutil.disk_usage(there).free
    line = f"{tokens:,} response tokens of {per_token:,} bytes, {_size(need)} to write in {folder}, {_size(free)} free"
    if need > free:
        raise UserError(f"teacher_cache_dir: {line}: choose another teacher_cache_dir, or max_train_samples")
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
    """Compute and write what is missing of ``documents``; all ranks call this together.

    Documents are cut into shards in their order, so a run that was killed goes on with the same shards, and the bytes
    do not depend on when it was killed or on how many ranks there are. Each rank, and each other run that fills the
    same folder, takes the next shard that nobody has claimed. ``compute`` runs equally often on every rank, as sharded
    models need it. ``gather`` returns every rank's value, ``progress`` is told of response tokens done.
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
                time.sleep(0.5)  # another run is at what is left
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
    """The missing documents of the first group that is free, longest first; none where all are taken."""
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
    """Documents in their order, each once, in groups of at most ``SHARD_TOKENS`` and ``SHARD_BYTES`` (or one alone)."""
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
