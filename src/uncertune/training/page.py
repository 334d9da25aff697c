"""The page of a training run, from the files of its folder."""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from uncertune.errors import UserError
from uncertune.report.html import write_page, write_token_page, write_whole
from uncertune.report.page import (
    Column,
    Curves,
    Facts,
    Frame,
    Page,
    Section,
    Series,
    Table,
    Token,
    TokenDocument,
    Tokens,
)
from uncertune.report.tokens import QUANTITIES, Moment, ScoredDocument, TokenPage
from uncertune.runs.folder import COMPARISONS, STAGE_1, is_complete
from uncertune.runs.records import METRICS, PROBE, read_json, read_lines, read_metrics, read_settings
from uncertune.training import fields

PLACES = (
    "output_dir",
    "logging_dir",
    "run_name",
    "teacher_cache_dir",
    "debug",
    "disable_tqdm",
    "dataloader_pin_memory",
    "pad_to_multiple_of",
    "report_to",
    "do_eval",
    "accelerator_config",
    "model_init_kwargs",
    "dataset_train_split",
    "dataset_test_split",
    "dataset_format",
)
"""Fields for paths and fields that follow from others: shown only among all settings."""
COMPUTED: dict[str, Any] = {"optim": "adamw_torch_fused", "include_for_metrics": [], "datasets": None}
"""Defaults that TRL and transformers compute."""
CURVES = (
    ("loss", "Loss of the objective", "nats per response token"),
    ("nll_selected", "Cross-entropy of the selected tokens", "nats per selected token"),
    ("nll_unselected", "Cross-entropy of the other response tokens", "nats per token that is not selected"),
    ("anchor_kl", "KL(anchor ‖ model)", "nats per response token"),
    ("entropy", "Entropy of the model's predictions", "nats per response token"),
    ("mean_token_accuracy", "Token accuracy", "share of response tokens"),
    ("selection_threshold", "Lowest selected score", "score"),
)


def write_run_page(folder: Path, into: Path | None = None) -> Path:
    """Write ``report.html``, and from the probes ``tokens.html``, into a run folder or another; return the path of
    ``report.html``. A run whose teacher was trained with it shows the curves of both."""
    into = into or folder
    config = _config(folder)
    runs = {"this run": folder} | ({"stage 1": folder / STAGE_1} if (folder / STAGE_1 / METRICS).is_file() else {})
    sections: list[Section] = [changed_settings(config)]
    records = {name: read_metrics(one / METRICS) for name, one in runs.items()}
    if is_complete(folder) and not records["this run"]:
        raise UserError(f"{str(folder / METRICS)!r} is damaged: it holds no records of this complete run")
    sections += curve_sections(records)
    probe = folder / PROBE
    links = [("Model card", folder / "README.md"), ("Stage 1", folder / STAGE_1 / "report.html")]
    if probe.is_file():
        links.insert(0, ("Every token at every moment", into / "tokens.html"))
        fraction = config.get("selection_fraction", 0.25)
        sections.append(token_section(probe, config.get("objective", "mle"), fraction, tokens_page=True))
        write_token_page(into / "tokens.html", token_page(probe, config))
    sections.append(
        Facts("All settings", tuple((name, _text(value)) for name, value in sorted(config.items())), folded=True)
    )
    sections.append(Facts("Software", tuple(_software(folder))))
    path = into / "report.html"
    links += [(f"Comparison in {page.parent.name}", page) for page in _comparisons(folder)]
    addresses = tuple((name, _address(page.resolve(), into)) for name, page in links if page.is_file())
    lead = f"This model was {_trained(config)}. This command trains it again, or goes on where it was interrupted:"
    command = shlex.join(["uncertune", "train", "--config", str(folder / "config.yaml")])
    write_page(path, Page(f"Fine-tuning {_model(config)}", lead, tuple(sections), addresses, command))
    return path


def write_runs_page(folders: Sequence[Path], into: Path) -> Path:
    """Write ``runs.html`` with the curves of several runs in common plots and their settings; return its path."""
    names = [folder.name for folder in folders]
    if len(set(names)) < len(names):
        names = [str(folder) for folder in folders]
    sections = curve_sections(
        {name: read_metrics(folder / METRICS) for name, folder in zip(names, folders, strict=True)}
    )
    configs = {name: _config(folder) for name, folder in zip(names, folders, strict=True)}
    changed = dict.fromkeys(field for config in configs.values() for field in _changed(config))
    different = [field for field in changed if len({_text(config.get(field)) for config in configs.values()}) > 1]
    columns = tuple(Column(field, field, None, 0, words=True) for field in different if field not in PLACES)
    rows = tuple({"run": name} | {one.key: _text(configs[name].get(one.key)) for one in columns} for name in names)
    if columns:
        sections.append(Table("What differs between the runs", "", columns, rows, "run", None))
    links = tuple((name, _address(page, into)) for name, page in _pages(names, folders))
    into.mkdir(parents=True, exist_ok=True)
    write_page(
        into / "runs.html", Page("Several runs", f"{len(names)} runs: {', '.join(names)}.", tuple(sections), links)
    )
    return into / "runs.html"


def _pages(names: Sequence[str], folders: Sequence[Path]) -> Iterator[tuple[str, Path]]:
    for name, folder in zip(names, folders, strict=True):
        if (folder / "report.html").is_file():
            yield name, (folder / "report.html").resolve()


def _config(folder: Path) -> dict[str, Any]:
    return read_settings(folder)


def changed_settings(config: Mapping[str, Any]) -> Facts:
    """The model and data, and every field that differs from its default."""
    first = {name: config.get(name) for name in ("model_name_or_path", "dataset_name", "objective")}
    shown = {**{name: value for name, value in first.items() if value is not None}, **_changed(config)}
    items = tuple((name, _text(value)) for name, value in shown.items() if name not in PLACES)
    return Facts("What differs from the defaults", items)


def _changed(config: Mapping[str, Any]) -> dict[str, Any]:
    """Fields that differ from their default; of unknown fields, those with a value."""
    defaults = {name: spec.default for name, spec in fields.specs().items()} | COMPUTED
    return {name: value for name, value in config.items() if (value != defaults[name] if name in defaults else value)}


def _text(value: Any) -> str:
    """A value as in the YAML of the run."""
    if isinstance(value, bool):
        return str(value).lower()
    return "none" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def _software(folder: Path) -> Iterator[tuple[str, str]]:
    environment = read_json(folder / "environment.json")
    packages = environment.get("packages")
    found = packages.items() if isinstance(packages, dict) else ()
    yield "versions", ", ".join(f"{name} {version}" for name, version in found if version)
    yield from ((name, str(environment[name])) for name in ("python", "platform") if name in environment)


def link_comparison(source: str | Path, page: Path) -> None:
    """Add a link to a comparison to the page of a finished run; other folders are unchanged.

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
    """Existing pages of comparisons with the run."""
    if (folder / COMPARISONS).is_file():
        for name in json.loads((folder / COMPARISONS).read_text(encoding="utf-8")):
            page = (folder / name).resolve()
            if page.is_file():
                yield page


def _address(page: Path, folder: Path) -> str:
    return quote(Path(os.path.relpath(page, folder.resolve())).as_posix())


def curve_sections(runs: Mapping[str, list[dict[str, Any]]]) -> list[Section]:
    """One plot per metric and one line per run over optimizer steps; held-out values as separate lines with dots."""
    sections: list[Section] = []
    for key, title, unit in CURVES:
        series = []
        for name, rows in runs.items():
            for kind, prefix, ending in (("step", "", ""), ("eval", "eval_", ", held out")):
                points = [(row["step"], row.get(prefix + key)) for row in rows if row["kind"] == kind]
                known = [(x, y) for x, y in points if y is not None]
                if known:
                    x, y = zip(*known, strict=True)
                    series.append(Series(name + ending, x, y, dots=kind == "eval"))
        if series:
            dots = any(one.dots for one in series)
            caption = (
                "Dots: evaluations on held-out rows, always plain cross-entropy." if dots and key == "loss" else ""
            )
            sections.append(Curves(title, caption, "optimizer step", unit, tuple(series)))
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
    """The model's name; a trainer that was built in Python may have none."""
    return Path(config.get("model_name_or_path") or "a model").name


def _trained(config: dict[str, Any]) -> str:
    data = config.get("dataset_name")
    return f"trained with {config.get('objective')}" + (f" on {Path(data).name}" if data else "")


def _moments(probe: Path) -> list[dict[str, Any]]:
    """The records of ``probe.jsonl``. Raises UserError where they are not a probe's."""
    moments = read_lines(probe)
    if not moments or not all({"step", "documents"} <= moment.keys() for moment in moments):
        raise UserError(f"{str(probe)!r} is damaged: it does not hold the steps and documents of a probe")
    return moments


def token_section(probe: Path, objective: str, fraction: float = 0.25, *, tokens_page: bool = False) -> Tokens:
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
        f"whose loss is highest at that moment of training with {objective}. Prompt tokens, coloured more faintly, are "
        "not trained on."
    )
    if tokens_page:
        caption += " Every moment and more quantities are in tokens.html beside this page."
    return Tokens("Which tokens are selected", caption, tuple(documents))
