"""The arguments of a scoring run."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Arguments of ``uncertune.scoring.score.score``.

    ``data``: a built-in name, a file, a folder or a hub id; ``model``: a hub id, a folder, a GGUF file or
    ``smollm2-135m``; ``adapter``: a LoRA adapter of it; ``against``: a folder of scores of the same data by
    another model. ``samples`` forward passes with dropout at each ``rate`` in (0, 1), the first of which the table and
    the page show, at ``places`` (None: wherever the model has dropout). The first ``max_samples`` documents are scored,
    each cut to ``max_length`` tokens. ``selection_fraction``: the share of tokens that the page marks. ``bootstrap``:
    resamplings of the documents for the intervals. ``memory_mib`` and ``pass_tokens`` bound memory and batches.
    ``allow_pickle``: load weights that are stored as a pickle; reading one can run code that it holds.
    ``paper``: also say what the numbers mean for the paper's claims. ``overwrite``: delete the scores in the folder.
    """

    data: str
    model: str
    output_dir: str
    adapter: str | None = None
    against: str | None = None
    samples: int = 100
    rate: tuple[float, ...] = (0.1,)
    places: tuple[str, ...] | None = None
    seed: int = 0
    max_samples: int = 100
    max_length: int = 1024
    dataset_split: str = "train"
    dataset_config: str | None = None
    dataset_format: str = "auto"
    dataset_text_field: str = "text"
    dataset_columns: dict[str, str] | None = None
    data_dir: str | None = None
    chat_template_path: str | None = None
    dtype: str = "float32"
    attn_implementation: str | None = None
    allow_pickle: bool = False
    selection_fraction: float = 0.25
    bootstrap: int = 1000
    memory_mib: int = 1024
    pass_tokens: int = 4096
    paper: bool = False
    overwrite: bool = False
