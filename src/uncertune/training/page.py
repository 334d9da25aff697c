"""The page of one training run, from the files of its folder."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import yaml

from uncertune.report.html import write_page, write_token_page, write_whole
from uncertune.report.page import Curves, Facts, Frame, Page, Section, Series, Token, TokenDocument, Tokens
from uncertune.report.tokens import QUANTITIES, Moment, ScoredDocument, TokenPage
from uncertune.runs.folder import COMPARISONS, is_complete
from uncertune.runs.records import METRICS, read_metrics
from uncertune.training.probe import PROBE

FACTS = (
    "model_name_or_path",
    "dataset_name",
    "objective",
    "selection_metric",
    "selection_fraction",
    "selection_level",
    "teacher",
    "learning_rate",
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
    "use_peft",
    "lora_r",
    "seed",
)
CURVES = (
    ("loss", "Loss of the objective", "nats per response token"),
    ("entropy", "Entropy of the model's predictions", "nats per response token"),
    ("mean_token_accuracy", "Token accuracy", "share of response tokens"),
    ("selection_threshold", "Lowest selected score", "score"),
)


def write_run_page(folder: Path, into: Path | None = None) -> Path:
    """Write ``report.html``, and from the probes ``tokens.html``, into a run folder, or another; return the former's
    path."""
    into = into or folder
    config = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
    environment = json.loads((folder / "environment.json").read_text(encoding="utf-8"))
    items = [(name, str(config[name])) for name in FACTS if config.get(name) is not None]
    items += [("versions", ", ".join(f"{k} {v}" for k, v in environment["packages"].items() if v))]
    sections: list[Section] = [Facts("The run", tuple(items))]
    sections += curve_sections({"this run": read_metrics(folder / METRICS, "step")})
    probe = folder / PROBE
    if probe.is_file():
        sections.append(token_section(probe, config.get("objective", "mle"), config.get("selection_fraction", 0.25)))
        write_token_page(into / "tokens.html", token_page(probe, config))
    path = into / "report.html"
    links = tuple((f"Comparison in {page.parent.name}", _address(page, into)) for page in _comparisons(folder))
    lead = f"This model was {_trained(config)}."
    write_page(path, Page(f"Fine-tuning {_model(config)}", lead, tuple(sections), links))
    return path


def link_comparison(source: str | Path, page: Path) -> None:
    """Have the page of a finished run say where it was compared; anything else than such a run's folder stays as it is.

    ``source`` is what was compared: the run's folder, or a checkpoint in it.
    """
    folder = next((one for one in (Path(source), Path(source).parent) if is_complete(one)), None)
    if folder is None or not os.access(folder, os.W_OK):
        return
    pages = dict.fromkeys([*map(str, _comparisons(folder)), str(page.resolve())])
    kept = [os.path.relpath(one, folder.resolve()) for one in pages]
    write_whole(folder / COMPARISONS, json.dumps(kept, indent=1).encode())
    write_run_page(folder)


def _comparisons(folder: Path) -> Iterator[Path]:
    """Pages that the run was compared in and that are still there."""
    if (folder / COMPARISONS).is_file():
        for name in json.loads((folder / COMPARISONS).read_text(encoding="utf-8")):
            page = (folder / name).resolve()
            if page.is_file():
                yield page


def _address(page: Path, folder: Path) -> str:
    return quote(Path(os.path.relpath(page, folder.resolve())).as_posix())


def curve_sections(runs: dict[str, list[dict[str, Any]]]) -> list[Section]:
    """One plot a metric that any run has, one line a run, over optimizer steps."""
    sections: list[Section] = []
    for key, title, unit in CURVES:
        series = []
        for name, rows in runs.items():
            points = [(row["step"], row[key]) for row in rows if row.get(key) is not None]
            if points:
                series.append(Series(name, tuple(p[0] for p in points), tuple(p[1] for p in points)))
        if series:
            sections.append(Curves(title, "", "optimizer step", unit, tuple(series)))
    return sections


def token_page(probe: Path, config: dict[str, Any]) -> TokenPage:
    """The texts of ``probe.jsonl`` with every quantity and every moment (Fig. 4)."""
    moments = _moments(probe)
    keys = [one.key for one in QUANTITIES if all(one.key in moment["documents"][0] for moment in moments)]
    documents = [
        ScoredDocument(
            f"text {number + 1}",
            first["text"],
            first["response"],
            [
                Moment(
                    f"step {moment['step']}",
                    {key: moment["documents"][number][key] for key in keys},
                    moment["documents"][number]["selected"],
                )
                for moment in moments
            ],
        )
        for number, first in enumerate(moments[0]["documents"])
    ]
    lead = (
        f"{_model(config)}, {_trained(config)}. Marked are the {config.get('selection_fraction', 0.25):.0%} of the "
        "response tokens of these texts whose loss is highest at that step."
    )
    return TokenPage("Tokens in the course of training", lead, documents)


def _model(config: dict[str, Any]) -> str:
    """A trainer used from Python has a model and data, and no names for them."""
    return Path(config.get("model_name_or_path") or "a model").name


def _trained(config: dict[str, Any]) -> str:
    data = config.get("dataset_name")
    return f"trained with {config.get('objective')}" + (f" on {Path(data).name}" if data else "")


def _moments(probe: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in probe.read_text(encoding="utf-8").splitlines()]


def token_section(probe: Path, objective: str, fraction: float = 0.25) -> Tokens:
    """The texts of ``probe.jsonl`` at the start, in the middle and at the end of training."""
    moments = _moments(probe)
    names = ["start", "middle", "end"]
    if len(moments) > len(names):
        moments = [moments[0], moments[len(moments) // 2], moments[-1]]
    documents = []
    for number in range(len(moments[0]["documents"])):
        frames = []
        for place, moment in enumerate(moments):
            document = moment["documents"][number]
            columns = zip(*(document[key] for key in ("text", "loss", "selected", "response")), strict=True)
            label = names[place] if len(moments) == len(names) else "moment"
            frames.append(Frame(f"{label} (step {moment['step']})", tuple(Token(*column) for column in columns)))
        documents.append(TokenDocument(f"Text {number + 1}", tuple(frames)))
    caption = (
        f"Colour is the model's loss on the token. Marked are the {fraction:.0%} of the response tokens of these texts "
        f"whose loss is highest at that moment of training with {objective}. Prompt tokens carry no loss. Every moment "
        "and more quantities are in tokens.html beside this page."
    )
    return Tokens("Which tokens are selected", caption, tuple(documents))
