"""Records of a run (SPEC B8): one line per step in ``metrics.jsonl``, and every mask in ``selection.parquet``."""

from __future__ import annotations

import json
import math
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from torch import Tensor
from transformers import TrainerCallback

from uncertune.runs.checkpoints import cut_to_checkpoint, record_entry
from uncertune.runs.files import atomic_file, write_atomically
from uncertune.runs.notes import note
from uncertune.runs.records import METRICS, PARTS, PROBE, SELECTION, read_metrics, selection_schema, selection_table
from uncertune.training.batch import layout_of


class RunLog(TrainerCallback):
    """Writes a run's records to its output folder; after a resume, truncates them to the checkpoint's step first.

    ``metrics.jsonl`` has lines of three kinds: ``step`` (every optimizer step), ``log`` and ``eval`` (as logged).
    Masks are written in parts with each checkpoint, and joined at the end of training.
    """

    def __init__(self, trainer: Any) -> None:
        self.trainer = trainer
        self.folder = Path(trainer.args.output_dir)
        self.rank = trainer.accelerator.process_index
        self.step: dict[str, float] | None = None
        self._rows: list[tuple[int, str, int, bytes]] = []
        self._parts: dict[str, int] = {}

    # ---- metrics

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._rows = []
        if self.rank == 0:
            self.folder.mkdir(parents=True, exist_ok=True)
            if not cut_to_checkpoint(self.folder / METRICS, state.global_step):
                cut_metrics(self.folder / METRICS, state.global_step)
            self._cut_selection(state.global_step)
        self.trainer.progress.begin()
        self.trainer.accelerator.wait_for_everyone()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.step is not None:
            self._write("step", state.global_step, self.step)
        self.step = None

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        if logs:
            kind = "eval" if any(name.startswith("eval_") for name in logs) else "log"
            self._write(kind, state.global_step, logs)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.flush()
        self.trainer.accelerator.wait_for_everyone()
        if self.rank == 0:
            self._join_selection()
            self._count_empty_steps()

    def _count_empty_steps(self) -> None:
        """Print the number of steps that selected nothing, which a fixed threshold allows."""
        if self.trainer.args.selection_threshold is None or not (self.folder / METRICS).is_file():
            return
        steps = read_metrics(self.folder / METRICS, "step")
        empty = sum(row.get("selected_fraction") == 0 for row in steps)
        name = f"selection_threshold={self.trainer.args.selection_threshold}"
        note(f"{name}: {empty} of {len(steps)} steps selected nothing")

    def _write(self, kind: str, step: int, values: dict[str, Any]) -> None:
        if self.rank != 0:
            return
        self.folder.mkdir(parents=True, exist_ok=True)  # an evaluation may come before any training
        finite = {k: v if not isinstance(v, float) or math.isfinite(v) else None for k, v in values.items()}
        with open(self.folder / METRICS, "a", encoding="utf-8") as file:
            file.write(json.dumps({"kind": kind, "step": step, **finite}) + "\n")

    def recorded(self) -> dict[str, Any]:
        """The records so far, for the marker of a checkpoint; on the first rank."""
        files = [self.folder / name for name in (METRICS, PROBE)]
        found: dict[str, Any] = {file.name: record_entry(file) for file in files if file.is_file()}
        for part in self._parts_folder().glob("*.parquet"):
            if part.name not in self._parts:
                self._parts[part.name] = pq.read_metadata(part).num_rows
        return {**found, PARTS: sum(self._parts.values())}

    # ---- selection

    def add_selection(self, step: int, batch: dict[str, Any], selected: Tensor) -> None:
        """Record the mask (T,), on the CPU, of one micro-batch, document by document."""
        layout = layout_of(batch)
        for number, name in enumerate(layout.hashes):
            bits = selected[layout.documents.index == number].numpy()
            self._rows.append((step, name, len(bits), np.packbits(bits).tobytes()))

    def flush(self) -> None:
        """Write the masks in memory to a separate part."""
        if not self._rows:
            return
        columns = list(zip(*self._rows, strict=True))
        table = pa.table(dict(zip(selection_schema().names, columns, strict=True)), schema=selection_schema())
        self._write_part(table, self._rows[-1][0])
        self._rows = []

    def _write_part(self, table: pa.Table, step: int) -> None:
        parts = self._parts_folder()
        parts.mkdir(parents=True, exist_ok=True)
        path = parts / f"{step:09d}-{self.rank:05d}.parquet"
        with atomic_file(path) as temporary:
            pq.write_table(table, temporary, write_page_checksum=True)

    def _parts_folder(self) -> Path:
        return self.folder / PARTS

    def _cut_selection(self, step: int) -> None:
        """Parts end with a checkpoint's step, those of later steps go whole; of a joined file, its later rows."""
        self._parts = {}
        joined = self.folder / SELECTION
        if joined.is_file():
            table = selection_table(self.folder)
            table = table.filter(pc.less_equal(table["step"], step))
            shutil.rmtree(self._parts_folder(), ignore_errors=True)  # all of them are in the joined file
            if table.num_rows:
                self._write_part(table, step)
            joined.unlink()
        for part in self._parts_folder().glob("*"):
            match = re.fullmatch(r"(\d+)-\d+\.parquet", part.name)
            if match is None or int(match[1]) > step:
                part.unlink()

    def _join_selection(self) -> None:
        if not any(self._parts_folder().glob("*.parquet")):
            return
        with atomic_file(self.folder / SELECTION) as temporary:
            pq.write_table(selection_table(self.folder), temporary, write_page_checksum=True)
        shutil.rmtree(self._parts_folder())


def cut_metrics(path: Path, step: int) -> None:
    """Keep the records up to ``step``, without an incomplete line after a crash."""
    if not path.is_file():
        return
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            if json.loads(line)["step"] <= step and step > 0:
                kept.append(line + "\n")
        except (json.JSONDecodeError, KeyError, TypeError):
            continue
    write_atomically(path, "".join(kept))
