"""``uncertune init``: a commented YAML file for a situation."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from uncertune.cli.options import Command
from uncertune.errors import UserError
from uncertune.settings import option, read_mapping

SITUATIONS = {
    "paper": (
        "Cross-entropy on the quarter of the tokens that the model finds hardest, distillation on the others.",
        "objective: masked_mle_distill  # train on the selected tokens, keep to the teacher on the others\n"
        "teacher: auto  # the same model fine-tuned with plain cross-entropy, trained first\n"
        "selection_fraction: 0.25  # share of the tokens that are selected, those of highest loss",
    ),
    "anchor": (
        "Plain fine-tuning that is kept close to the base model: learn the data, forget less.",
        "objective: mle\n"
        "anchor: base  # the model before training; under LoRA no second copy is needed\n"
        "anchor_weight: 0.1  # weight of KL(base || model); more forgets less and learns less",
    ),
    "dft": (
        "Dynamic fine-tuning: each token counts by the probability that the model gives it.",
        "objective: mle\ntoken_weighting: dft  # less weight on tokens that the model finds improbable",
    ),
    "sft": ("Plain supervised fine-tuning, as `trl sft` does it.", "objective: mle"),
}


@dataclass(frozen=True, kw_only=True)
class InitOptions:
    """Options of ``uncertune init``."""

    for_: str = option(help="what the run is for", choices=tuple(SITUATIONS), unit="SITUATION", example="--for paper")
    model: str = option("smollm2-135m", "hub id, folder, .gguf file, or smollm2-135m", unit="MODEL")
    data: str = option(
        "word_problems", "alpaca, gsm8k, sharegpt, word_problems, a file, a folder or a hub id", unit="DATA"
    )
    output_dir: str = option("runs/mine", "folder of the run", unit="DIR")
    file: str = option("run.yaml", "the file to write", unit="FILE")
    overwrite: bool = option(False, "replace the file where it exists")


def text_of(given: InitOptions) -> str:
    """The file's text."""
    purpose, lines = SITUATIONS[given.for_]
    model, data, output_dir = (
        json.dumps(one, ensure_ascii=False) for one in (given.model, given.data, given.output_dir)
    )
    return f"""# {purpose}
# Run it with: uncertune train --config {given.file}

model_name_or_path: {model}
dataset_name: {data}  # rows with messages, prompt and completion, or text
output_dir: {output_dir}

{lines}

use_peft: true  # train a LoRA adapter, not the whole model
lora_r: 32
lora_alpha: 64
lora_target_modules: all-linear
learning_rate: 1.0e-4  # for LoRA; a tenth of it for the whole model
lr_scheduler_type: cosine
num_train_epochs: 1
per_device_train_batch_size: 8
gradient_accumulation_steps: 4  # 32 rows an optimizer step; with a few hundred rows take 1
max_length: 1024  # tokens after which a row is cut
logging_steps: 10
report_to: none
"""


def call(given: InitOptions) -> None:
    """Write the file, and check it as ``uncertune train`` does."""
    from uncertune.training import fields

    path = Path(given.file).expanduser()
    if path.exists() and not given.overwrite:
        raise UserError(f"file {given.file!r} exists: name another, or add --overwrite")
    if not path.parent.is_dir():
        raise UserError(f"file {given.file!r}: the folder {str(path.parent)!r} does not exist")
    path.write_text(text_of(given), encoding="utf-8")
    fields.checked(read_mapping(path))
    print(f"file: {path}\nnext: uncertune check {path}, then uncertune train --config {path}")


COMMAND = Command(
    "init",
    "write a commented YAML file for a situation: paper, anchor, dft or sft",
    InitOptions,
    call,
    "Write a commented YAML file to start from: paper (train on the hardest tokens, distil on the others), anchor "
    "(fine-tune and stay close to the base model), dft (dynamic fine-tuning) or sft (plain fine-tuning).",
)
