"""``uncertune demo``: options, and the call."""

from __future__ import annotations

from dataclasses import dataclass, fields

from uncertune.cli.options import Command
from uncertune.settings import option


@dataclass(frozen=True, kw_only=True)
class DemoOptions:
    """Options of ``uncertune demo``."""

    output_dir: str = option("demo", "folder of the runs, the table and the page", unit="DIR")
    arms: tuple[str, ...] = option(
        ("mle", "masked_mle_distill", "anchor"), "ways to train: mle, masked_mle, masked_mle_distill, anchor"
    )
    model: str = option("smollm2-135m", "hub id, folder, .gguf file, or smollm2-135m", unit="MODEL")
    train_problems: int = option(200, "word problems to train on", least=1)
    batch_size: int = option(8, "problems in an optimizer step", least=1)
    learning_rate: float = option(1e-4, "peak of the cosine schedule", above=0)
    selection_fraction: float = option(0.25, "fraction of tokens trained on with cross-entropy", above=0, most=1)
    test_problems: int = option(32, "held-out problems to answer", least=1)
    general_prompts: int = option(
        16, "general prompts on which the divergence from the base model is measured", least=1
    )
    max_new_tokens: int = option(80, "longest answer, in tokens", least=1)
    seed: int = option(0, "seed of data, training and order", least=0, most=2**32 - 1)
    overwrite: bool = option(False, "delete the runs in output_dir and start again, instead of resuming")


def command_line(given: DemoOptions) -> str:
    """The command line: the folder, and the options that differ from the defaults."""
    known = {one.name: one.default for one in fields(given) if one.name not in ("output_dir", "overwrite")}
    values = {name: getattr(given, name) for name, default in known.items() if getattr(given, name) != default}
    chosen = [f"--{name} {','.join(value) if isinstance(value, tuple) else value}" for name, value in values.items()]
    return " ".join(["uncertune demo", *chosen, f"--output_dir {given.output_dir}"])


def call(given: DemoOptions) -> None:
    """Run the demo."""
    from uncertune.demo import Demo, run_demo

    settings = {one.name: getattr(given, one.name) for one in fields(given) if one.name != "overwrite"}
    run_demo(Demo(**settings, command=command_line(given)), overwrite=given.overwrite)


COMMAND = Command(
    "demo",
    "fine-tune SmolLM2-135M in several ways on word problems, and show what each learned and forgot",
    DemoOptions,
    call,
    "Fine-tune a small language model in several ways on arithmetic word problems, from the same start and on the same "
    "data: MLE, masked MLE + distillation, and MLE + anchor. Then measure what each learned (held-out problems) and "
    "what each forgot (the base model's other abilities), print a table and write report.html. Run the same command "
    "again to resume.",
)
