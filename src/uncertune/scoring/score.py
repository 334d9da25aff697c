"""``score``: scores on disk, correlations with intervals, figures, and the token page."""

from __future__ import annotations

import contextlib
import json
import math
import textwrap
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from uncertune.report import (
    Column,
    Moment,
    ScoredDocument,
    Table,
    TokenPage,
    Value,
    terminal_width,
    to_markdown,
    to_text,
    write_token_page,
)
from uncertune.report.tables import format_estimate
from uncertune.runs.environment import environment
from uncertune.runs.files import write_atomically
from uncertune.runs.folder import check_writable, lock_folder, output_folder
from uncertune.scoring import figures, run
from uncertune.scoring.change import aligned, change, earlier_scores
from uncertune.scoring.composition import BY, KINDS, Shares, composition, hardest, kinds_of
from uncertune.scoring.correlation import PROXIES, UNCERTAINTIES, Correlations, correlations
from uncertune.scoring.rows import Prepared, prepare
from uncertune.scoring.settings import Settings
from uncertune.scoring.uncertain import few_documents, uncertain_table
from uncertune.settings import TRUST
from uncertune.statistics.bootstrap import mean_of
from uncertune.statistics.intervals import Estimate

PAGE_DOCUMENTS = 200


def score(data: str, model: str, output_dir: str | Path, **settings: Any) -> dict[str, Any]:
    """Score the response tokens of a data set, or resume; write all files, and return the summary.

    ``settings`` are the fields of ``Settings``: adapter, samples, rate, max_samples, … The folder gets
    ``tokens.parquet`` (document, position, token, text, rate, and the five quantities in nats), ``summary.json`` and
    ``.md``, figures, and ``tokens.html``. Raises UserError for data or a model that cannot be loaded, and for a folder
    with other scores.
    """
    return _score(Settings(data=data, model=model, output_dir=str(output_dir), **settings))


def _score(settings: Settings) -> dict[str, Any]:
    before = earlier_scores(settings.against) if settings.against else None
    folder = Path(settings.output_dir).expanduser()
    with output_folder(folder, check_writable):
        prepared = prepare(settings)
        first = prepared.accelerator.is_main_process
        with lock_folder(folder) if first else contextlib.nullcontext():
            if first:
                if settings.overwrite:
                    run.clear(folder)
                run.begin(folder, run.identity(settings, prepared))
            prepared.accelerator.wait_for_everyone()
            if not run.is_complete(folder):
                run.score(folder, settings, prepared)
            if not first:
                return {}
            table = pq.read_table(folder / run.TOKENS) if run.is_complete(folder) else run.finish(folder, prepared)
            return _write(folder, settings, prepared, table, before)


def _write(
    folder: Path, settings: Settings, prepared: Prepared, table: pa.Table, before: pa.Table | None
) -> dict[str, Any]:
    given = {name: value for name, value in asdict(settings).items() if name not in TRUST}
    write_atomically(folder / "config.yaml", yaml.safe_dump(given, sort_keys=False))
    write_atomically(folder / "environment.json", json.dumps(environment(), indent=1))
    main = _at(table, settings.rate[0])
    columns = {name: main[name].to_numpy() for name in run.QUANTITIES}
    document = main["document"].to_numpy()
    found = correlations(columns, document, draws=settings.bootstrap, seed=settings.seed)
    by_rate = {}
    for rate in settings.rate:
        part = _at(table, rate)
        by_rate[rate] = mean_of(
            part["epistemic"].to_numpy(), part["document"].to_numpy(), draws=settings.bootstrap, seed=settings.seed
        )
    title = f"{Path(str(settings.model)).name} on {Path(str(settings.data)).name}"
    figures.correlations(folder / "correlations", found, title)
    figures.losses(folder / "losses", columns["loss"], document, title)
    if len(by_rate) > 1:
        figures.dropout(folder / "dropout", by_rate, title)
    summary = _summary(settings, found, columns, by_rate)
    changes: dict[str, Estimate] = {}
    now, earlier = main, None
    if before is not None:
        now, earlier = aligned(main, _at(before, settings.rate[0]))
        changes = change(now, earlier, draws=settings.bootstrap, seed=settings.seed)
        summary["change"] = {"against": settings.against} | {name: _plain(one) for name, one in changes.items()}
    made_of, made_of_changes = _made_of(now, earlier, prepared, settings)
    summary["hardest"] = {by: _plain_shares(shares) for by, shares in made_of.items()}
    if made_of_changes:
        summary["hardest_change"] = {by: _plain_shares(shares) for by, shares in made_of_changes.items()}
    write_atomically(folder / "summary.json", json.dumps(summary, indent=1))
    shown = _table(found, title, settings)
    said = (_claim(found) if settings.paper else "") + _changes(settings, changes)
    parts = _made_of_table(made_of, made_of_changes, now, settings)
    places = list(zip(document.tolist(), main["position"].to_pylist(), strict=True))
    top = uncertain_table(columns, places, {row.number: row.input_ids for row in prepared.rows}, prepared.tokenizer)
    sections = (_with_caption(shown), said, _with_caption(parts), _with_caption(top))
    write_atomically(folder / "summary.md", "\n".join(section for section in sections if section))
    write_token_page(folder / "tokens.html", _page(settings, prepared, columns, main, title))
    texts = [f"{to_text(one)}\n{textwrap.fill(one.caption, terminal_width())}" for one in (shown, parts, top)]
    print("\n\n".join(section for section in (texts[0], said.strip("\n"), *texts[1:]) if section))
    print(f"\nscores: {folder / run.TOKENS}\npage:   {folder / 'tokens.html'}")
    return summary


def _with_caption(table: Table) -> str:
    return f"{to_markdown(table)}\n{table.caption}\n"


def _summary(
    settings: Settings, found: Correlations, columns: dict[str, Any], by_rate: dict[float, Estimate]
) -> dict[str, Any]:
    return {
        "model": settings.model,
        "adapter": settings.adapter,
        "data": settings.data,
        "samples": settings.samples,
        "rate": settings.rate[0],
        "documents": found.documents,
        "tokens": found.tokens,
        "bootstrap_draws": found.draws,
        "mean_nats": {name: float(np.mean(values)) for name, values in columns.items()},
        "correlation": {
            kind: {f"{x}, {y}": _plain(one) for (x, y), one in pairs.items()} for kind, pairs in found.by.items()
        },
        "difference": {
            kind: {name: _plain(one) for name, one in parts.items()} for kind, parts in found.closer.items()
        },
        "mean_epistemic_by_rate": {str(rate): _plain(one) for rate, one in sorted(by_rate.items())},
    }


def _plain(one: Estimate) -> dict[str, float | None]:
    return {name: None if math.isnan(value) else value for name, value in asdict(one).items()}


def _plain_shares(shares: Shares) -> dict[str, dict[str, float | None]]:
    return {kind: _plain(one) for kind, one in shares.items()}


def _table(found: Correlations, title: str, settings: Settings) -> Table:
    columns = []
    for proxy in PROXIES:
        columns.append(Column(proxy, f"with {proxy}", None, 3))
        columns.append(Column(f"{proxy} interval", "95 %", None, 0))
    rows = []
    for kind, pairs in found.by.items():
        for uncertainty in UNCERTAINTIES:
            row: dict[str, float | str | None] = {"quantity": f"{uncertainty}, {kind.capitalize()}"}
            for proxy in PROXIES:
                one = pairs[uncertainty, proxy]
                row[proxy], row[f"{proxy} interval"] = one.value, _interval(one)
            rows.append(row)
    caption = (
        f"n = {found.tokens} tokens of {found.documents} documents, {settings.samples} dropout samples at rate "
        f"{settings.rate[0]:g}. The 95 % intervals cover which documents were drawn ({found.draws} resamplings of "
        f"whole documents), not the seed of the dropout samples.{few_documents(found.documents)}"
    )
    return Table(f"Correlation over tokens: {title}", caption, tuple(columns), tuple(rows), "quantity", None)


def _claim(found: Correlations) -> str:
    """The result of the paper's first claim (C1) in words, from the differences of correlations."""
    lines = []
    for name, near, far in (("epistemic", "loss", "entropy"), ("aleatoric", "entropy", "loss")):
        for kind, parts in found.closer.items():
            one = parts[name]
            verdict = "undecided"
            if one.low > 0:
                verdict = "yes"
            elif one.high < 0:
                verdict = "no, the other way round"
            lines.append(
                f"- {name} correlates more with {near} than with {far} ({kind.capitalize()}): {verdict}, "
                f"difference {one.value:+.3f} {_interval(one)}"
            )
    return "\n" + "\n".join(lines) + "\n"


def _changes(settings: Settings, changes: dict[str, Estimate]) -> str:
    """The mean change of each quantity from the scores of ``against``."""
    return "".join(
        f"- {name}, mean change from {settings.against}: {one.value:+.4f} nats [{one.low:+.4f}, {one.high:+.4f}]\n"
        for name, one in changes.items()
    )


def _made_of(
    now: pa.Table, earlier: pa.Table | None, prepared: Prepared, settings: Settings
) -> tuple[dict[str, Shares], dict[str, Shares]]:
    """Shares of kinds of tokens, among all and among the hardest by each quantity; their changes from ``earlier``."""
    kinds, document = kinds_of(now, set(prepared.tokenizer.all_special_ids)), now["document"].to_numpy()
    shares = partial(composition, kinds, document, draws=settings.bootstrap, seed=settings.seed)
    found, changes = {"all": shares(np.ones(len(kinds), dtype=bool))}, {}
    for by in BY:
        chosen = hardest(now, by, settings.selection_fraction)
        found[by] = shares(chosen)
        if earlier is not None:
            changes[by] = shares(chosen, hardest(earlier, by, settings.selection_fraction))
    return found, changes


def _made_of_table(made_of: dict[str, Shares], changes: dict[str, Shares], now: pa.Table, settings: Settings) -> Table:
    """The shares of kinds of tokens: one row for all tokens, and one for the hardest by each quantity."""
    columns = [Column(kind, kind.capitalize(), None, 1, percent=True) for kind in KINDS]
    rows: list[dict[str, Value]] = []
    for by, shares in made_of.items():
        hard = f"hardest {settings.selection_fraction:.0%} by {by}"
        rows.append({"tokens": "all response tokens" if by == "all" else hard, **_shown(shares, columns)})
        if by in changes:
            signed = [replace(column, sign=True) for column in columns]
            rows.append({"tokens": f"its change from {settings.against}", **_shown(changes[by], signed)})
    documents = len(np.unique(now["document"].to_numpy()))
    caption = (
        f"Shares of n = {len(now)} tokens of {documents} documents with 95 % intervals over documents; changes in "
        f"points.{few_documents(documents)}"
    )
    return Table("What the hardest tokens are made of", caption, tuple(columns), tuple(rows), "tokens", None)


def _shown(shares: Shares, columns: list[Column]) -> dict[str, Value]:
    return {column.key: format_estimate(shares[column.key], column) for column in columns}


def _at(table: pa.Table, rate: float) -> pa.Table:
    return table.filter(pa.compute.equal(table["rate"], rate))


def _interval(one: Estimate) -> str:
    return "–" if math.isnan(one.low) else f"[{one.low:.3f}, {one.high:.3f}]"


def _page(settings: Settings, prepared: Prepared, columns: dict[str, Any], main: pa.Table, title: str) -> TokenPage:
    chosen = hardest(main, "loss", settings.selection_fraction)
    numbers, position = main["document"].to_numpy(), main["position"].to_numpy()
    texts: dict[int, str] = {}
    documents = []
    for row in prepared.rows[:PAGE_DOCUMENTS]:
        mine = np.flatnonzero(numbers == row.number)
        length = len(row.input_ids)
        values: dict[str, list[float | None]] = {name: [None] * length for name in run.QUANTITIES}
        selected, response = [False] * length, [False] * length
        for index in mine:
            place = int(position[index])
            response[place], selected[place] = True, bool(chosen[index])
            for name in run.QUANTITIES:
                values[name][place] = float(columns[name][index])
        text = [run.token_text(prepared.tokenizer, token, texts) for token in row.input_ids]
        documents.append(ScoredDocument(f"document {row.number}", text, response, (Moment("", values, selected),)))
    adapter = f" with {settings.adapter}" if settings.adapter else ""
    left = f", the first {PAGE_DOCUMENTS} here" if len(prepared.rows) > PAGE_DOCUMENTS else ""
    lead = (
        f"{settings.samples} dropout samples at rate {settings.rate[0]:g}{adapter}; "
        f"{len(prepared.rows)} documents{left}. "
        f"Marked are the {settings.selection_fraction:.0%} of all response tokens whose loss is highest."
    )
    return TokenPage(f"Token uncertainty: {title}", lead, documents)
