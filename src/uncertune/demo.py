"""``uncertune demo``: one model, fine-tuned several ways from the same start on the same data, compared on one page."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from peft import LoraConfig
from transformers.utils import logging as transformers_logging

from uncertune.data.general import GENERAL_PROMPTS, GENERAL_TEXT
from uncertune.data.rows import Labelling, Row, labelling_of, tokenise
from uncertune.data.sources import load
from uncertune.data.synthetic import check_answer
from uncertune.errors import UserError
from uncertune.evaluation.measures import drift_from_base, generate, token_loss
from uncertune.models import (
    active_adapter,
    attach_head,
    fast_dtype,
    load_adapter,
    load_model,
    load_tokenizer,
    resolve_model,
)
from uncertune.report import (
    AnswerRow,
    Answers,
    Column,
    Curves,
    Facts,
    Page,
    Section,
    Series,
    Table,
    to_markdown,
    to_text,
    write_page,
)
from uncertune.runs.environment import environment
from uncertune.runs.files import write_atomically
from uncertune.runs.notes import note
from uncertune.runs.records import METRICS, PROBE, read_metrics
from uncertune.settings import shown
from uncertune.training.config import UncertuneConfig
from uncertune.training.page import token_section, write_run_page
from uncertune.training.pipeline import Job, run

MLE, BASE = "mle", "base"
ARMS = {
    MLE: "MLE",
    "masked_mle": "masked MLE",
    "masked_mle_distill": "masked MLE + distillation",
    "anchor": "MLE + anchor",
}
MEANING = {
    MLE: "plain cross-entropy on every token",
    "masked_mle": "cross-entropy only on the tokens it finds hardest",
    "masked_mle_distill": "cross-entropy on the tokens it finds hardest, distillation of the MLE model on the others",
    "anchor": "cross-entropy on every token, and KL from the untrained model",
}
MEASURES = "measures.json"
SHOWN_ANSWERS = 10
NAMES = {BASE: "base model", **ARMS}
COLUMNS = (
    Column("exact_match", "exact match", "higher", 1, percent=True),
    Column("loss", "solution loss", "lower", 3),
    Column("kept", "own answers kept", "higher", 1, percent=True),
    Column("kl", "KL from base", "lower", 4),
    Column("text_loss", "text loss", "lower", 3),
)


@dataclass(frozen=True)
class Demo:
    """The arms and sizes of a demo; ``command`` is quoted on its page. Raises UserError for unknown or missing arms."""

    output_dir: str
    arms: tuple[str, ...] = (MLE, "masked_mle_distill", "anchor")
    model: str = "smollm2-135m"
    train_problems: int = 200
    batch_size: int = 8
    learning_rate: float = 1e-4
    selection_fraction: float = 0.25
    test_problems: int = 32
    general_prompts: int = 16
    max_new_tokens: int = 80
    seed: int = 0
    command: str = ""

    def __post_init__(self) -> None:
        unknown = [arm for arm in self.arms if arm not in ARMS]
        if unknown:
            raise UserError(f"arms: {shown(unknown[0])} is unknown: choose from {', '.join(ARMS)}")
        if MLE not in self.arms:
            raise UserError(f"arms lacks {MLE!r}, which the others are compared with: add it")
        object.__setattr__(self, "arms", tuple(arm for arm in ARMS if arm in self.arms))

    @property
    def names(self) -> dict[str, str]:
        """The names of the base and the arms in tables."""
        return {BASE: NAMES[BASE], **{arm: NAMES[arm] for arm in self.arms}}


def run_demo(demo: Demo, *, overwrite: bool = False) -> dict[str, Any]:
    """Train the arms, measure them and the base, print the table, write the page; return the measures by arm."""
    transformers_logging.set_verbosity_error()
    output = Path(demo.output_dir)
    model = resolve_model(demo.model)
    for arm in demo.arms:
        note(f"== training {NAMES[arm]} ({demo.train_problems} problems, batches of {demo.batch_size})")
        write_run_page(run(_job(arm, model, output, demo), overwrite=overwrite))
    if overwrite:
        (output / MEASURES).unlink(missing_ok=True)
    measures = _measure(model, output, demo)
    table = _table(measures, demo)
    path = output / "report.html"
    write_page(path, _page(table, measures, output, demo))
    write_atomically(output / "table.md", to_markdown(table))
    print(f"\n{to_text(table)}\n\npage: {path}")
    return measures


# ---- training


def _job(arm: str, model: str, output: Path, demo: Demo) -> Job:
    """The paper's settings (§4.1) where the demo's size allows: LoRA of rank 32 on all linear modules, α = 64."""
    config = UncertuneConfig(
        output_dir=str(output / arm),
        objective=MLE if arm == "anchor" else arm,
        anchor="base" if arm == "anchor" else "none",
        teacher=str(output / MLE) if arm == "masked_mle_distill" else None,
        selection_fraction=demo.selection_fraction if arm.startswith("masked") else 0.25,
        assistant_only_loss=True,
        num_train_epochs=1,
        per_device_train_batch_size=demo.batch_size,
        per_device_eval_batch_size=demo.batch_size,
        learning_rate=demo.learning_rate,
        lr_scheduler_type="cosine",
        seed=demo.seed,
        bf16=False,
        use_cpu=_no_accelerator(),
        gradient_checkpointing=False,
        dataloader_pin_memory=False,
        model_init_kwargs={"dtype": fast_dtype()},  # of the base; the adapter is float32
        eval_strategy="steps",
        eval_steps=0.5,
        eval_on_start=True,
        logging_steps=5,
        save_strategy="steps",
        save_steps=0.2,
        save_total_limit=2,
        report_to="none",
    )
    return Job(
        model=model,
        config=config,
        train_dataset=load("word_problems", max_samples=demo.train_problems, seed=demo.seed),
        eval_dataset=load("word_problems", split="test", max_samples=min(16, demo.test_problems), seed=demo.seed),
        peft_config=LoraConfig(
            r=32, lora_alpha=64, lora_dropout=0.0, target_modules="all-linear", task_type="CAUSAL_LM"
        ),
        resolved=config.to_dict() | {"model_name_or_path": demo.model, "dataset_name": "word_problems"},
    )


def _no_accelerator() -> bool:
    import torch

    return not torch.accelerator.is_available()


# ---- measures


def _measure(model_path: str, output: Path, demo: Demo) -> dict[str, Any]:
    """The measures of the base and of every arm; those already in ``measures.json`` are kept."""
    path = output / MEASURES
    settings = {k: v for k, v in asdict(demo).items() if k not in ("output_dir", "command", "arms")}
    settings["measures"] = [column.key for column in COLUMNS]
    known = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    measures: dict[str, Any] = known.get("measures", {}) if known.get("settings") == settings else {}
    if set(measures) >= set(demo.names):
        return measures
    tokenizer = load_tokenizer(model_path)
    model = load_model(model_path, dtype="float32")
    for arm in demo.arms:
        model = load_adapter(model, output / arm, name=arm)
    if not _no_accelerator():
        import torch

        model.to(torch.accelerator.current_accelerator())
    attach_head(model)
    problems = list(load("word_problems", split="test", max_samples=demo.test_problems, seed=demo.seed))
    tests = _answers_to(tokenizer, [row["messages"] for row in problems])
    texts = [tokenise({"text": text}, number, tokenizer, Labelling()) for number, text in enumerate(GENERAL_TEXT)]
    if BASE not in measures:
        note(f"== measuring the {NAMES[BASE]}")
        prompts = [[{"role": "user", "content": prompt}] for prompt in GENERAL_PROMPTS[: demo.general_prompts]]
        with active_adapter(model, None):
            own = generate(model, tokenizer, prompts, max_new_tokens=48, batch_size=32, label="(base, general prompts)")
            measures[BASE] = {"kl": 0.0, "kept": 1.0, "general": own}
            measures[BASE] |= _in_and_out(model, BASE, tokenizer, problems, tests, texts, demo)
        _keep(path, settings, measures)
    asked = [[{"role": "user", "content": prompt}] for prompt in GENERAL_PROMPTS]
    answered = zip(asked, measures[BASE]["general"], strict=False)
    general = _answers_to(tokenizer, [[*turns, {"role": "assistant", "content": said}] for turns, said in answered])
    for arm in demo.arms:
        if arm not in measures:
            note(f"== measuring {NAMES[arm]}")
            measures[arm] = asdict(drift_from_base(model, arm, general, pad=tokenizer.pad_token_id))
            with active_adapter(model, arm):
                measures[arm] |= _in_and_out(model, arm, tokenizer, problems, tests, texts, demo)
            _keep(path, settings, measures)
    return measures


def _answers_to(tokenizer: Any, conversations: list[Any]) -> list[Row]:
    """Conversations as rows whose response is what the assistant says."""
    rows = [{"messages": turns} for turns in conversations]
    how = labelling_of(rows[0], tokenizer)
    return [tokenise(row, number, tokenizer, how) for number, row in enumerate(rows)]


def _in_and_out(
    model: Any, arm: str, tokenizer: Any, problems: list[Any], tests: list[Row], texts: list[Row], demo: Demo
) -> dict[str, Any]:
    prompts = [row["messages"][:-1] for row in problems]
    answers = generate(
        model, tokenizer, prompts, max_new_tokens=demo.max_new_tokens, batch_size=32, label=f"({NAMES[arm]}, problems)"
    )
    correct = [check_answer(answer, row["answer"]) for answer, row in zip(answers, problems, strict=True)]
    pad = tokenizer.pad_token_id
    return {
        "exact_match": sum(correct) / len(correct),
        "loss": token_loss(model, tests, pad=pad),
        "text_loss": token_loss(model, texts, pad=pad),
        "answers": answers,
        "correct": correct,
    }


def _keep(path: Path, settings: dict[str, Any], measures: dict[str, Any]) -> None:
    write_atomically(path, json.dumps({"settings": settings, "measures": measures}, indent=1))


# ---- the table and the page


def _table(measures: dict[str, Any], demo: Demo) -> Table:
    rows = [{"model": name, **{c.key: measures[arm][c.key] for c in COLUMNS}} for arm, name in demo.names.items()]
    caption = (
        f"In distribution: exact match of greedy answers, and the loss on the worked solutions, on "
        f"{demo.test_problems} held-out problems. Out of distribution, on the base model's own answers to "
        f"{demo.general_prompts} general prompts: the share of their tokens that the model would still choose, and "
        f"KL(base ‖ model); and the loss on {len(GENERAL_TEXT)} paragraphs of general prose. Losses and KL in nats per "
        "token. Differences are to MLE. One seed and a small sample: enough to see the trade-off, not to rank methods."
    )
    return Table(
        "What each learned and what each forgot",
        caption,
        COLUMNS,
        tuple(rows),
        "model",
        NAMES[MLE],
    )


def _page(table: Table, measures: dict[str, Any], output: Path, demo: Demo) -> Page:
    packages = ", ".join(f"{name} {version}" for name, version in environment()["packages"].items() if version)
    facts = (
        ("model", demo.model),
        ("training data", f"{demo.train_problems} arithmetic word problems, one epoch"),
        ("batch", f"{demo.batch_size} problems a step"),
        ("adapter", "LoRA, rank 32, alpha 64, all linear modules"),
        ("learning rate", f"{demo.learning_rate:g}, cosine"),
        ("arms", "; ".join(f"{NAMES[arm]}: {MEANING[arm]}" for arm in demo.arms)),
        ("selected", f"the {demo.selection_fraction:.0%} of response tokens with the highest loss in each step"),
        ("teacher", "the MLE run above, a second adapter on the same base"),
        ("seed", str(demo.seed)),
        ("versions", packages),
        ("command", demo.command),
    )
    sections: list[Section] = [table, *_curves(output, demo)]
    if masked := [arm for arm in demo.arms if arm.startswith("masked")]:
        sections.append(token_section(output / masked[-1] / PROBE, NAMES[masked[-1]], fraction=demo.selection_fraction))
    sections.append(_answers(measures, demo))
    sections.append(Facts("How it was made", facts))
    ways = "; ".join(f"{MEANING[arm]} ({NAMES[arm]})" for arm in demo.arms)
    lead = (
        f"One small language model, fine-tuned from the same start on the same data in {len(demo.arms)} ways: {ways}. "
        "What did each gain, and what did each lose?"
    )
    return Page("Ways to fine-tune a language model", lead, tuple(sections))


def _curves(output: Path, demo: Demo) -> list[Section]:
    plots = (
        ("eval_loss", "Loss on held-out problems", "Plain cross-entropy, whatever the objective."),
        ("eval_entropy", "Entropy on held-out problems", "How sure of its predictions each model is."),
    )
    sections: list[Section] = []
    for key, title, caption in plots:
        series = []
        for arm in demo.arms:
            rows = [row for row in read_metrics(output / arm / METRICS, "eval") if key in row]
            series.append(Series(NAMES[arm], tuple(r["step"] for r in rows), tuple(r[key] for r in rows)))
        sections.append(Curves(title, caption, "optimizer step", "nats per response token", tuple(series)))
    return sections


def _answers(measures: dict[str, Any], demo: Demo) -> Answers:
    """The problems on which the models' verdicts differ first, then the others, in their order."""
    problems = list(load("word_problems", split="test", max_samples=demo.test_problems, seed=demo.seed))

    def verdicts(number: int) -> set[bool]:
        return {measures[arm]["correct"][number] for arm in demo.names}

    rows = []
    for number in sorted(range(len(problems)), key=lambda number: len(verdicts(number)) == 1)[:SHOWN_ANSWERS]:
        question, solution = (turn["content"] for turn in problems[number]["messages"])
        rows.append(
            AnswerRow(
                question,
                solution,
                {name: measures[arm]["answers"][number] for arm, name in demo.names.items()},
                {name: measures[arm]["correct"][number] for arm, name in demo.names.items()},
            )
        )
    caption = (
        f"Greedy answers to {len(rows)} of the {len(problems)} held-out problems, those on which the models differ "
        "first. An answer is right if the number after its last #### is."
    )
    return Answers("Answers side by side", caption, tuple(demo.names.values()), tuple(rows))
