"""``uncertune score``: options, and the call."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from uncertune.cli import options
from uncertune.cli.options import Command
from uncertune.data.files import check_there
from uncertune.errors import UserError
from uncertune.settings import option
from uncertune.training.fields import FORMATS

DTYPES = tuple(one for one in options.DTYPES if one != "auto")
_OF_DATA = ("against", "max_samples", "max_length", "bootstrap", "paper")


@dataclass(frozen=True, kw_only=True)
class ScoreOptions:
    """Options of ``uncertune score``."""

    data: str | None = option(
        None, "alpaca, gsm8k, sharegpt, word_problems, a file, a folder or a hub id", positional=True
    )
    model: str = option(
        help="hub id, folder, .gguf file, or smollm2-135m", unit="MODEL", example="--model smollm2-135m"
    )
    text: str | None = option(None, "score this text instead of a data set, and print its most uncertain tokens")
    output_dir: str | None = option(None, "folder of the scores, the figures and the page", unit="DIR")
    adapter: str | None = option(None, "folder or hub id of a LoRA adapter to put on the model", unit="PATH")
    against: str | None = option(
        None,
        "folder of scores of the same data by another model: the mean change of each quantity is added",
        unit="DIR",
    )
    samples: int = option(100, "forward passes with dropout for each document", least=1)
    rate: tuple[float, ...] = option(
        (0.1,), "share of activations dropped, several with commas; tables and page show the first", above=0, below=1
    )
    places: tuple[str, ...] = option(
        (),
        "where dropout acts, with commas: attention, residual, mlp, lora, or patterns of module names",
        unset="all that the model has",
    )
    seed: int = option(0, "of dropout and of the bootstrap", least=0)
    max_samples: int = option(100, "documents to score, the first ones of the data", least=1)
    max_length: int = option(1024, "tokens after which a document is cut", least=2)
    dataset_split: str = option("train", "split of the data")
    dataset_config: str | None = options.dataset_config()
    dataset_format: str = option("auto", "how rows become messages; auto: by their columns", choices=FORMATS)
    dataset_text_field: str = option("text", "column of plain text, all of which is scored")
    dataset_columns: dict[str, str] | None = options.dataset_columns()
    data_dir: str | None = options.data_dir()
    chat_template_path: str | None = options.chat_template_path()
    dtype: str = option("float32", "number format of the model's weights", choices=DTYPES)
    attn_implementation: str | None = options.attn_implementation()
    allow_pickle: bool = options.allow_pickle()
    selection_fraction: float = option(0.25, "share of the tokens that the page marks, by loss", above=0, most=1)
    bootstrap: int = option(1000, "resamplings of the documents for the intervals", least=1)
    memory_mib: int = option(1024, "memory for what is kept of the samples of a document", unit="MiB", least=1)
    pass_tokens: int = option(4096, "tokens that run as one batch of copies of a document", least=1)
    paper: bool = option(False, "also say what the numbers mean for the paper's claims on uncertainty")
    overwrite: bool = option(False, "delete the scores in output_dir instead of resuming them")


def check(given: ScoreOptions) -> None:
    """Raise UserError for values that do not go together."""
    options.no_duplicates("rate", given.rate)
    if given.data is None and given.text is None:
        raise UserError("data is missing: give it, for example alpaca, or --text 'A sentence.'")
    if given.data is not None and given.text is not None:
        raise UserError(f"text: there is data to score already ({given.data}); give one of them")
    if given.data is not None and given.output_dir is None:
        raise UserError("output_dir is missing: give it, for example --output_dir scores")
    check_there(given.data)
    if given.text is not None:
        for name in _OF_DATA:
            if getattr(given, name) != COMMAND.specs[name].default:
                raise UserError(f"{name} is for scoring a data set, not --text: leave it out")


def call(given: ScoreOptions) -> None:
    """Score the data or the text."""
    values: dict[str, Any] = {**asdict(given), "places": given.places or None}
    if given.text is not None:
        from uncertune.scoring.text import score_given_text

        score_given_text(**{name: values[name] for name in _OF_TEXT})
        return

    from uncertune.scoring.score import score

    del values["text"]
    score(**values)


_OF_TEXT = (
    *("text", "model", "adapter", "samples", "rate", "places", "seed", "chat_template_path", "dtype"),
    *("attn_implementation", "allow_pickle", "selection_fraction", "memory_mib", "pass_tokens", "output_dir"),
)

COMMAND = Command(
    "score",
    "uncertainty of every response token of a data set, with figures and a page to read",
    ScoreOptions,
    call,
    "Total, aleatoric and epistemic uncertainty of every response token of a data set, by Monte-Carlo dropout, beside "
    "its loss and entropy: tokens.parquet, correlations with intervals, figures, and a page of the text coloured token "
    "by token. Run the same command again to resume at the document where it stopped; `accelerate launch` shares the "
    "documents among processes.",
    check,
)
