"""What a sweep is asked to do: its own options, the arms as written, and the settings of every run."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from uncertune.settings import option

DTYPES = ("auto", "float32", "bfloat16", "float16")
Arms = list[dict[str, list[Any]]]


@dataclass(frozen=True, kw_only=True)
class SweepOptions:
    """What a sweep does besides training: which seeds, and what is measured."""

    output_dir: str = option(
        help="folder of the runs, the measures and the table", unit="DIR", example="--output_dir sweeps/mine"
    )
    seeds: tuple[int, ...] = option((0, 1, 2), "one run of every arm for each", least=0, most=2**32 - 1)
    jobs: int | None = option(
        None, "processes that train at the same time", least=1, most=1024, unset="one for each GPU, else one"
    )
    fresh_rows: bool = option(
        False, "with max_train_samples: each seed trains on rows drawn with it, not on the first ones"
    )
    held_out: int = option(
        64, "training rows kept apart to measure on, where the data has no test split", least=1, unit="ROWS"
    )
    out: tuple[str, ...] = option(
        (), "data sets out of distribution: DATA or DATA@SPLIT, as tokens:DATA of `uncertune evaluate`"
    )
    documents: int = option(64, "documents measured of each data set, the first ones", least=1)
    measure_every: str = option(
        "epoch",
        "when each run is measured: at every epoch, every N steps, or at its end only (end); sets save_strategy",
        unit="epoch|N|end",
    )
    tasks: tuple[str, ...] = option((), "tasks of lm-eval that are measured too")
    limit: int | None = option(None, "documents of each task of lm-eval", least=1, unset="all")
    batch_size: int = option(16, "documents measured together", least=1)
    measure_dtype: str = option(
        "auto", "number format of the model while it is measured; auto: as stored", choices=DTYPES
    )
    paper: bool = option(False, "also test the paper's claims C3 and C5, and number the figures as the paper does")


@dataclass(frozen=True)
class Request:
    """A sweep's options, its arms, the settings of every run, and ``over`` them the flags of the command."""

    options: SweepOptions
    arms: Arms
    settings: dict[str, Any]
    over: dict[str, Any] = field(default_factory=dict)
