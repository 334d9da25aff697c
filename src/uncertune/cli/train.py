"""``uncertune train``: options, and the call."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from uncertune.cli import options
from uncertune.cli.options import help_text
from uncertune.data.files import check_there
from uncertune.settings import Spec, check_trust, read_mapping, shown
from uncertune.training import fields

PROGRAM = "uncertune train"
SUMMARY = "fine-tune a model: the fields of `trl sft`, and objective, selection, teacher and more"
DESCRIPTION = (
    "Fine-tune a causal language model on messages, prompts with completions, or text. A YAML file of `trl sft` runs "
    "as it is; objective and teacher make it uncertainty-aware. Run the same command again to resume."
)
FIRST = (
    *("model_name_or_path", "dataset_name", "output_dir", "use_peft", "lora_r", "learning_rate", "num_train_epochs"),
    *("max_steps", "per_device_train_batch_size", "gradient_accumulation_steps", "max_length", "eval_strategy", "seed"),
)
"""The most used fields of TRL, described together with ours."""
_FIRST_HELP = {
    "model_name_or_path": "hub id, folder, .gguf file, or smollm2-135m",
    "dataset_name": "alpaca, gsm8k, sharegpt, word_problems, a file, a folder or a hub id",
    "output_dir": "folder of the run",
    "use_peft": "train a LoRA adapter instead of the whole model",
    "lora_r": "rank of the adapter",
    "learning_rate": "peak learning rate",
    "num_train_epochs": "passes over the data",
    "max_steps": "optimizer steps instead of epochs",
    "per_device_train_batch_size": "rows in a micro-batch",
    "gradient_accumulation_steps": "micro-batches in an optimizer step",
    "max_length": "tokens after which a row is cut",
    "eval_strategy": "when the loss on the test split is measured",
    "seed": "seed of order, initialisation and dropout",
}


def parse(arguments: Sequence[str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The checked settings of the file, and those of the flags. Raises UserError, one line."""
    known = fields.specs()
    path, flags = options.split(known, arguments, PROGRAM)
    settings = {} if path is None else fields.checked(read_mapping(path), f" in {shown(path, 200)}")
    check_trust(settings)
    over = fields.checked(flags)
    check_there({**settings, **over}.get("dataset_name"))
    return settings, over


def help_page(everything: bool = False, width: int = 0) -> str:
    """The help text: ours, and the most used fields of TRL; with ``everything`` the names of all others."""
    known = fields.specs()
    first: Mapping[str, Spec] = {name: _described(known[name]) for name in FIRST}
    shown_specs = {**first, **{name: known[name] for name in fields.own()}}
    rest = [name for name in known if name not in shown_specs]
    more = "Every other field of `trl sft` (TRL's SFTConfig, ModelConfig and ScriptArguments) is taken too"
    more += f": {', '.join(rest)}." if everything else f", {len(rest)} in all; --help-all names them."
    return help_text(PROGRAM, DESCRIPTION, shown_specs, more, width)


def _described(spec: Spec) -> Spec:
    from dataclasses import replace

    default = spec.default if spec.default is not trl_default() else None
    return replace(spec, help=_FIRST_HELP[spec.name], group="model, data and training", default=default)


def trl_default() -> Any:
    """The marker of a default that TRL computes."""
    from uncertune.training.trl_fields import UNKNOWN

    return UNKNOWN


def call(settings: Mapping[str, Any], over: Mapping[str, Any]) -> int:
    """Train, write the pages of the run and of its stages, and print where they are."""
    if not {**settings, **over}.get("model_name_or_path"):
        from uncertune.errors import UserError

        raise UserError("model_name_or_path is missing: give a hub id, a folder, a .gguf file, or smollm2-135m")

    from uncertune.runs.folder import RHO, STAGE_1
    from uncertune.training.arguments import arguments_of
    from uncertune.training.jobs import job_of
    from uncertune.training.page import write_run_page
    from uncertune.training.pipeline import fill_caches, run

    given = arguments_of(settings, over)
    if given.data.fill_teacher_cache_only:
        print(f"cache:  {fill_caches(job_of(given), overwrite=given.data.overwrite)}")
        return 0
    folder = run(job_of(given), overwrite=given.data.overwrite)
    print(f"run:    {folder}")
    if not given.training.save_report:
        return 0
    for stage in (STAGE_1, RHO):
        if (folder / stage).is_dir():
            write_run_page(folder / stage)
    print(f"page:   {write_run_page(folder)}")
    if (tokens := folder / "tokens.html").is_file():
        print(f"tokens: {tokens}")
    return 0


class _Train:
    """Like ``options.Command``; its options are fields of several dataclasses, most of them TRL's."""

    name, summary = "train", SUMMARY

    @property
    def specs(self) -> Mapping[str, Spec]:
        return fields.specs()

    def help(self) -> str:
        return help_page()

    def run(self, arguments: Sequence[str]) -> int:
        if {"--help-all", "--help_all"} & set(arguments) or options.asks_help(arguments):
            print(help_page(not options.asks_help(arguments)))
            return 0
        return call(*parse(arguments))


COMMAND = _Train()
