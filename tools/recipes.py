"""The paper's results as recipes, from one place: ``python -m tools.recipes`` writes ``src/uncertune/recipes``.

``MODEL_DATA_OBJECTIVE.yaml`` is one run of ``uncertune train``; ``sweeps/fig3_…`` and ``sweeps/fig5-6_…`` are all the
runs of a figure's panel, for ``uncertune sweep``; ``family/…`` are objectives published since. A test compares the
files with what is written here.
"""

from __future__ import annotations

import textwrap
from dataclasses import dataclass
from pathlib import Path

FOLDER = Path(__file__).parent.parent / "src" / "uncertune" / "recipes"


@dataclass(frozen=True)
class Model:
    """A base model of §4.1. It has no chat template of its own and takes that of its instruct model."""

    name: str
    hub: str
    instruct: str
    parameters: float
    """In billions."""


@dataclass(frozen=True)
class Data:
    """A training set of Table 1; tokens a row are SmolLM2's, cut at ``max_length``."""

    name: str
    title: str
    rows: int
    tokens: int
    other: tuple[str, ...]
    task: str | None = None
    max_length: int = 1024
    cut: bool = False
    """Whether the source has more rows than the paper names."""


MODELS = (
    Model("gemma-2b", "google/gemma-2b", "google/gemma-2b-it", 2.5),
    Model("gemma-2-2b", "google/gemma-2-2b", "google/gemma-2-2b-it", 2.6),
    Model("llama-3.2-1b", "meta-llama/Llama-3.2-1B", "meta-llama/Llama-3.2-1B-Instruct", 1.2),
)
DATA = (
    Data("alpaca", "Alpaca", 52_000, 108, ("gsm8k", "ifeval_gpt4", "wikitext2", "mmlu_dev")),
    Data(
        "sharegpt", "ShareGPT", 52_000, 1302, ("alpaca", "gsm8k", "ifeval_gpt4", "wikitext2"), max_length=2048, cut=True
    ),
    Data("gsm8k", "GSM8K", 7_473, 215, ("alpaca", "ifeval_gpt4", "wikitext2", "mmlu_dev"), task="gsm8k"),
)
OBJECTIVES = {
    "mle": "MLE, the baseline of every figure",
    "masked_mle": "masked MLE on the 25 % of the tokens with the highest loss",
    "distill": "distillation from the model fine-tuned with MLE",
    "masked_mle_distill": "masked MLE + distillation, the paper's method",
}
FAMILY: dict[str, tuple[str, float, str, list[str]]] = {
    "dft": (
        "DFT: the label weighs its own probability (arXiv 2508.05629)",
        2,
        "forward, backward",
        ["token_weighting: dft"],
    ),
    "eaft": (
        "EAFT: the label weighs the entropy of the 20 most probable tokens (arXiv 2601.02151)",
        2,
        "forward, backward",
        ["token_weighting: eaft"],
    ),
    "asft": (
        "ASFT: DFT with an anchor at the base (arXiv 2509.23753)",
        3,
        "forward, backward, anchor",
        ["token_weighting: dft", "anchor: base", "anchor_weight: 0.1"],
    ),
    "sft-kl": (
        "MLE with an anchor at the base",
        3,
        "forward, backward, anchor",
        ["anchor: base", "anchor_weight: 0.1"],
    ),
    "members": (
        "masked MLE + distillation from the mean of four teachers",
        3 + 4 + 4 * 2,
        "forward, backward, selection, four teachers, and the two of each in stage 1",
        ["objective: masked_mle_distill", "teacher: auto", "teacher_members: 4"],
    ),
}
"""Of the later objectives: what it is, its passes, what they are, and its fields."""
# Passes over every token in units of 2 · parameters FLOP: forward 1, backward 1 (the base is frozen), one more without
# gradient to select over the whole step, one for the teacher; its own training is stage 1.
PASSES = {"mle": 2, "masked_mle": 3, "distill": 2 + 1 + 2, "masked_mle_distill": 3 + 1 + 2}
TFLOPS = 94.0  # 30 % of an A100's 312 in bfloat16
FIGURES = {
    "alpaca": "Fig. 5 and 6",
    "sharegpt": "Fig. 6 (B)",
    "gsm8k": "Fig. 3 (bottom) and 6 (B)",
}
REPORTED = {
    "alpaca": "masked MLE gains on AlpacaEval over MLE and loses on IFEval and the other tasks; with distillation it "
    "gains on both (§4.3, Fig. 5 and 6; Llama-3.2-1B and Gemma-2B). No number stands in the text.",
    "sharegpt": "masked MLE + distillation improves in and out of distribution (§4.3, Fig. 6, right). No number stands "
    "in the text.",
    "gsm8k": "token-level masked MLE by loss gains over MLE and over whole documents (§4.2, Fig. 3, bottom); it is one "
    "of the data sets of Fig. 6 (B). No number stands in the text.",
}
FIG_3 = (
    "selection by token beats selection by document, and of entropy, loss, RHO and random only loss beats MLE "
    "throughout, on AlpacaEval significantly (§4.2). No number stands in the text."
)


def hours(model: Model, data: Data, passes: float) -> float:
    """On one A100 80 GB: rows × tokens × passes × 2 · parameters, over ``TFLOPS``."""
    return data.rows * data.tokens * passes * 2 * model.parameters * 1e9 / (TFLOPS * 1e12) / 3600


def cost(model: Model, data: Data, passes: float, what: str) -> str:
    """The line of the header; what is short is said in minutes."""
    found = hours(model, data, passes)
    time = f"{found:.1f} hours" if found >= 1 else f"{60 * found:.0f} minutes"
    return (
        f"about {time} on one A100 80 GB, an estimate: {data.rows:,} rows × {data.tokens} tokens × {passes:g} passes "
        f"({what}) × 2 × {model.parameters} GFLOP, at {TFLOPS:.0f} TFLOP/s (30 % of peak)."
    )


def wrapped(head: str, text: str) -> list[str]:
    """A comment of several lines, its text indented under the first."""
    return textwrap.wrap(
        text, 118, initial_indent=f"# {head:<8}", subsequent_indent=f"# {'':<8}", break_long_words=False
    )


def one_line(head: str, command: str) -> list[str]:
    """A command, which is not wrapped."""
    return [f"# {head:<8}{command}"]


def settings(model: Model, data: Data) -> list[str]:
    """The fields that all runs of a model on a data set have in common."""
    return [
        f"model_name_or_path: {model.hub}",
        f"chat_template_path: {model.instruct}   # the base model has no chat template",
        f"dataset_name: {data.name}",
        *([f"max_train_samples: {data.rows}   # the paper's ShareGPT 52K; the file has more"] if data.cut else []),
        *([f"max_length: {data.max_length}"] if data.max_length != 1024 else []),
        "assistant_only_loss: true",
        "",
        "# Paper, §4.1: LoRA of rank 32 on all linear modules, alpha 64; 1 epoch, batch 32, learning rate 1e-4, cosine",
        "use_peft: true",
        "lora_r: 32",
        "lora_alpha: 64",
        "lora_dropout: 0.0",
        "lora_target_modules: all-linear",
        "num_train_epochs: 1",
        "per_device_train_batch_size: 8",
        "gradient_accumulation_steps: 4",
        "learning_rate: 1.0e-4",
        "lr_scheduler_type: cosine",
        *(["attn_implementation: eager   # what Gemma 2 is to be trained with"] if "gemma-2-" in model.name else []),
    ]


def run(model: Model, data: Data, objective: str) -> tuple[str, str]:
    """File name and text of one training run."""
    name = f"{model.name}_{data.name}_{objective.replace('_', '-')}"
    selects, distils = "masked" in objective, "distill" in objective
    parts = {"mle": "forward, backward"}.get(objective, "forward, backward" + (", selection" if selects else ""))
    parts += ", teacher, and the two of stage 1" if distils else ""
    lines = [
        *wrapped(
            "Result:", f"{FIGURES[data.name]} of the paper: {model.hub} on {data.title}, {OBJECTIVES[objective]}."
        ),
        *one_line("Run:", f"uncertune train --config paper/{name} --output_dir runs/{name}"),
        *wrapped("Paper:", REPORTED[data.name]),
        *wrapped("Cost:", cost(model, data, PASSES[objective], parts)),
        *settings(model, data),
        "",
        f"objective: {objective}",
        *(["teacher: auto"] if distils else []),
        *(["selection_metric: loss", "selection_fraction: 0.25", "selection_level: token"] if selects else []),
    ]
    return f"paper/{name}.yaml", "\n".join(lines) + "\n"


def relative(model: Model, data: Data, name: str) -> tuple[str, str]:
    """One of the later objectives on the settings of the paper."""
    title, passes, parts, fields = FAMILY[name]
    path = f"family/{model.name}_{data.name}_{name}.yaml"
    output = f"runs/{model.name}_{data.name}_{name}"
    lines = [
        *wrapped("Result:", f"no figure of the paper: {model.hub} on {data.title}, {title}."),
        *one_line("Run:", f"uncertune train --config {path.removesuffix('.yaml')} --output_dir {output}"),
        *wrapped("Cost:", cost(model, data, passes, parts)),
        *settings(model, data),
        "",
        *fields,
    ]
    return path, "\n".join(lines) + "\n"


def panel(model: Model, data: Data) -> tuple[str, str]:
    """Fig. 5 and 6: the four objectives, three seeds, in and out of distribution."""
    name = f"sweeps/fig5-6_{model.name}_{data.name}.yaml"
    passes = 3 * (sum(PASSES.values()) - 2 * PASSES["mle"])
    arms = [
        "  arms:",
        "    - objective: [mle, distill]",
        "    - objective: [masked_mle, masked_mle_distill]",
        "      selection_metric: loss",
        "      selection_fraction: 0.25",
    ]
    return name, _sweep(model, data, name, FIGURES[data.name], REPORTED[data.name], passes, arms, "4 objectives")


def figure_3(model: Model, data: Data) -> tuple[str, str]:
    """Fig. 3: masked MLE by four metrics, token by token and by document."""
    name = f"sweeps/fig3_{model.name}_{data.name}.yaml"
    passes = 3 * (PASSES["mle"] + 8 * PASSES["masked_mle"])
    arms = [
        "  arms:",
        "    - objective: masked_mle",
        "      selection_metric: [loss, entropy, rho, random]",
        "      selection_level: [token, document]",
        "      selection_fraction: 0.25",
    ]
    side = {"alpaca": "top", "gsm8k": "bottom"}[data.name]
    return name, _sweep(model, data, name, f"Fig. 3 ({side})", FIG_3, passes, arms, "MLE and 8 selections")


def _sweep(
    model: Model, data: Data, name: str, figure: str, reported: str, passes: float, arms: list[str], what: str
) -> str:
    tasks = ", ".join(dict.fromkeys([*([data.task] if data.task else []), "ifeval", "gsm8k"]))
    lines = [
        *wrapped("Result:", f"{figure} of the paper: {model.hub} on {data.title}, {what}, 3 seeds."),
        *one_line(
            "Run:", f"uncertune sweep --config {name.removesuffix('.yaml')} --output_dir {name.removesuffix('.yaml')}"
        ),
        *wrapped("Paper:", reported),
        *wrapped(
            "Cost:",
            cost(model, data, passes, f"{what}, each seed's teacher once") + " Answers of the tasks come on top.",
        ),
        *settings(model, data),
        "",
        "sweep:",
        *arms,
        "  seeds: [0, 1, 2]",
        "  held_out: 512",
        f"  out: [{', '.join(data.other)}]",
        "  documents: 256",
        f"  tasks: [{tasks}]   # answers, by lm-eval",
        "  paper: true   # claims and figures of the paper",
    ]
    return "\n".join(lines) + "\n"


def recipes() -> dict[str, str]:
    """Every file, by its path under the recipes' folder."""
    made = [run(model, data, objective) for model in MODELS for data in DATA for objective in OBJECTIVES]
    made += [relative(MODELS[-1], DATA[-1], name) for name in FAMILY]
    made += [panel(model, data) for model in MODELS for data in DATA]
    made += [figure_3(model, data) for model in MODELS for data in DATA if data.name != "sharegpt"]
    return dict(made)


def main() -> None:
    """Write them all."""
    for name, text in recipes().items():
        (FOLDER / name).parent.mkdir(exist_ok=True)
        (FOLDER / name).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
