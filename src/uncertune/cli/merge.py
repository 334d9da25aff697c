"""``uncertune merge``: options, and the call."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from uncertune.cli import options
from uncertune.cli.options import Command
from uncertune.settings import option


@dataclass(frozen=True, kw_only=True)
class MergeOptions:
    """Options of ``uncertune merge``."""

    run: str = option(help="folder of a run, or of any LoRA adapter", positional=True, example="runs/mine")
    output_dir: str = option(help="new folder of the model", unit="DIR", example="--output_dir merged")
    base: str | None = option(
        None, "hub id or folder of the base model", unit="MODEL", unset="the model that the run names"
    )
    trust_remote_code: bool = option(False, "run code that the base model brings; only as a flag, never from a file")
    allow_pickle: bool = options.allow_pickle()
    dtype: str = options.dtype(help="number format of the weights; auto: the base model's own")


def call(given: MergeOptions) -> None:
    """Merge, and print the folder."""
    from uncertune.training.merge import merge

    folder = merge(
        Path(given.run).expanduser(),
        Path(given.output_dir).expanduser(),
        base=given.base,
        dtype=given.dtype,
        trust_remote_code=given.trust_remote_code,
        allow_pickle=given.allow_pickle,
    )
    print(f"model:  {folder}")


COMMAND = Command(
    "merge",
    "merge a run's LoRA adapter into its base: a plain model that transformers and vLLM load",
    MergeOptions,
    call,
    "Merge a run's LoRA adapter into its base and write a plain model with tokenizer and chat template, which "
    "transformers and vLLM load. The base of a run on a 4- or 8-bit base is loaded unquantised.",
)
