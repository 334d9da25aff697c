"""A file of ``uncertune train`` with a tiny model and a few rows, for tests of what a run leaves or shows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

from helpers.tiny import save_tiny


def run_file(folder: Path, rows: int, **fields: Any) -> Path:
    """Write model, rows in Alpaca's form and ``run.yaml``: LoRA in two stages, with ``fields`` beside; the file."""
    model = save_tiny(folder / "model", marked=True, max_position_embeddings=4096)
    content = [{"instruction": f"Say {n}.", "output": f"{n}, {n * n}."} for n in range(rows)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in content))
    settings = {
        "model_name_or_path": str(model),
        "dataset_name": str(folder / "rows.jsonl"),
        "teacher": "auto",
        "use_peft": True,
        "lora_r": 2,
        "save_strategy": "no",
        "bf16": False,
    }
    path = folder / "run.yaml"
    path.write_text(yaml.safe_dump({**settings, **fields}))
    return path
