"""The options of ``uncertune score``, without a heavy import."""

from __future__ import annotations

import argparse
from dataclasses import dataclass

from uncertune import options
from uncertune.errors import UserError

DTYPES = tuple(one for one in options.DTYPES if one != "auto")


@dataclass(frozen=True)
class ScoreOptions:
    """What ``uncertune score`` can be told."""

    data: str | None = None
    model: str | None = None
    output_dir: str | None = None
    adapter: str | None = None
    against: str | None = None
    samples: int = 100
    rate: str = "0.1"
    places: str | None = None
    seed: int = 0
    max_samples: int = 100
    max_length: int = 1024
    dataset_split: str = "train"
    dataset_config: str | None = None
    dataset_format: str = "auto"
    dataset_text_field: str = "text"
    data_dir: str | None = None
    chat_template_path: str | None = None
    dtype: str = "float32"
    attn_implementation: str | None = None
    selection_fraction: float = 0.25
    bootstrap: int = 1000
    memory_mib: int = 1024
    pass_tokens: int = 4096
    overwrite: bool = False

    @property
    def rates(self) -> tuple[float, ...]:
        """The dropout rates, the first of which the table, the page and most figures show."""
        return options.numbers("rate", self.rate)

    @property
    def chosen_places(self) -> tuple[str, ...] | None:
        return tuple(self.places.split(",")) if self.places else None


HELP = {
    **options.HELP,
    "data": "alpaca, gsm8k, sharegpt, word_problems, a file, a folder or a hub id",
    "model": "hub id, folder, .gguf file, or smollm2-135m",
    "output_dir": "folder of the scores, the figures and the page",
    "adapter": "folder or hub id of a LoRA adapter to put on the model",
    "against": "folder of scores of the same data by another model: the mean change of each quantity is added",
    "samples": "forward passes with dropout of each document",
    "rate": "share of activations dropped; with commas, several: the first is the main one, all are in Fig. 10",
    "places": "where dropout acts, with commas: attention, residual, mlp, lora, or patterns of module names; all "
    "that the model has",
    "seed": "of dropout and of the bootstrap",
    "max_samples": "documents to score, the first ones of the data",
    "max_length": "tokens after which a document is cut",
    "dataset_split": "split of the data",
    "dataset_format": "auto, trl, alpaca, gsm8k, sharegpt, responses, mmlu or wikitext",
    "dataset_text_field": "column of plain text, all of which is scored",
    "dtype": "of the model: float32, bfloat16 or float16",
    "selection_fraction": "the page marks this share of the tokens, those of highest loss",
    "bootstrap": "resamplings of the documents for the intervals",
    "memory_mib": "MiB for what is kept of the samples of a document",
    "pass_tokens": "tokens that run as one batch of copies of a document",
    "overwrite": "start anew, deleting the scores in output_dir, instead of going on",
}


def parser() -> argparse.ArgumentParser:
    """The parser of ``uncertune score``."""
    return options.parser(
        ScoreOptions,
        "uncertune score",
        "Total, aleatoric and epistemic uncertainty of every response token of a data set, by Monte-Carlo dropout, "
        "beside its loss and entropy: tokens.parquet, correlations with intervals, figures, and a page of the text "
        "coloured token by token. Started again, it goes on at the document where it stopped; under `accelerate "
        "launch` documents are shared out.",
        HELP,
        positional="data",
    )


def parse(arguments: list[str]) -> ScoreOptions:
    """Options from flags, over those of ``--config``. Raises UserError, one line, for what cannot be used."""
    out = options.parse(ScoreOptions, parser(), arguments)
    for name, example in (("data", "alpaca"), ("model", "--model smollm2-135m"), ("output_dir", "--output_dir scores")):
        if not getattr(out, name):
            raise UserError(f"{name} is missing: give it, for example {example}")
    for rate in out.rates:
        if not 0 < rate < 1:
            raise UserError(f"rate: {rate} is not in (0, 1): give the share of activations to drop, for example 0.1")
    if len(set(out.rates)) < len(out.rates):
        raise UserError(f"rate: {out.rate!r} names a rate twice: keep one")
    options.check_counts(out, "samples", "max_samples", "bootstrap", "memory_mib", "pass_tokens")
    if out.max_length < 2:
        raise UserError(f"max_length must be at least 2, got {out.max_length}")
    if not 0 < out.selection_fraction <= 1:
        raise UserError(f"selection_fraction must be in (0, 1], got {out.selection_fraction}")
    options.check_choice("dtype", out.dtype, DTYPES)
    return out
