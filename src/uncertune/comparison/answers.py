"""Answers of a comparison side by side: judged answers with their verdicts, and answers of generative tasks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from uncertune.comparison.data import Comparison, Record
from uncertune.report.page import AnswerRow, Answers
from uncertune.report.tables import metric_name

SHOWN = 50
"""Documents of one task; judged answers are all shown."""
_SAID = 300  # characters shown of a judge's reply without a verdict
_ORDERS = {"model_first": "Shown first", "baseline_first": "Shown second"}


def answer_sections(found: Comparison, baseline: str) -> Iterator[Answers]:
    """The judged answers, then those of each generative task."""
    if found.answers:
        yield _judged(found, baseline)
    for task, by_model in found.results.items():
        samples = {model: found.samples[task, model] for model in by_model if (task, model) in found.samples}
        metric = _checked(by_model)
        if metric is not None and samples:
            yield _sampled(task, samples, metric)


def _judged(found: Comparison, baseline: str) -> Answers:
    names = sorted(found.answers, key=lambda name: name != baseline)
    by_id = {name: {line["id"]: line for line in lines} for name, lines in found.answers.items()}
    said: dict[tuple[str, str], dict[str, Record]] = {}
    for name, lines in found.judgements.items():
        for line in lines:
            said.setdefault((name, line["id"]), {})[line["order"]] = line
    ids = dict.fromkeys(key for name in names for key in by_id[name])
    rows = []
    for key in ids:
        given = {name: by_id[name][key] for name in names if key in by_id[name]}
        notes = {
            name: (*_verdicts(said.get((name, key), {}), judged=name in found.judgements), *_cut(line))
            for name, line in given.items()
        }
        prompt = _prompt(next(iter(given.values()))["messages"])
        rows.append(AnswerRow(prompt, "", {name: line["answer"] for name, line in given.items()}, None, notes))
    judge = f" Below each: the judge's verdict in both orders, against {baseline}." if found.judgements else ""
    return Answers("Answers side by side", f"{len(rows)} prompts.{judge}", tuple(names), tuple(rows))


def _verdicts(by_order: Mapping[str, Record], *, judged: bool) -> list[str]:
    if not judged:
        return []
    return [f"{said}: {_verdict(by_order.get(order))}" for order, said in _ORDERS.items()]


def _verdict(line: Record | None) -> str:
    if line is None:
        return "not asked"
    preference = line.get("preference")
    if line["outcome"] == "judged" and preference is not None:
        word = "preferred" if preference > 0.5 else "not preferred" if preference < 0.5 else "a draw"
        return f"{word}, probability {preference:.2f}"
    reply = str(line.get("reply") or "")
    shown = f", it said: {reply[:_SAID]}{'…' if len(reply) > _SAID else ''}" if reply else ""
    return f"no verdict ({line['outcome']}){shown}"


def _cut(line: Record) -> list[str]:
    return [f"Cut off at {line.get('tokens')} tokens."] if line.get("ended") is False else []


def _prompt(messages: Sequence[Mapping[str, Any]]) -> str:
    if len(messages) == 1:
        return str(messages[0]["content"])
    return "\n\n".join(f"{turn['role']}: {turn['content']}" for turn in messages)


def _checked(by_model: Mapping[str, Record]) -> str | None:
    """The metric by which a generated answer is right or wrong; None for token-level tasks."""
    for one in by_model.values():
        if "tokens" in one["metrics"]:
            return None
        better = one.get("higher_is_better") or {}
        return next((name for name in one["metrics"] if better.get(name) and "/" not in name), None)
    return None


def _sampled(task: str, samples: Mapping[str, list[Record]], metric: str) -> Answers:
    """The documents, those on which the models differ first."""
    by_id = {name: {line["doc_id"]: line for line in lines} for name, lines in samples.items()}
    ids = list(dict.fromkeys(key for lines in by_id.values() for key in lines))

    def marks(key: Any) -> dict[str, bool]:
        scores = {name: lines[key]["scores"].get(metric) for name, lines in by_id.items() if key in lines}
        return {name: bool(score) for name, score in scores.items() if score in (0, 1)}

    ids.sort(key=lambda key: len(set(marks(key).values())) < 2)
    rows = []
    for key in ids[:SHOWN]:
        given = {name: lines[key] for name, lines in by_id.items() if key in lines}
        one = next(iter(given.values()))
        answers = {name: str(line.get("answer") or "") for name, line in given.items()}
        rows.append(AnswerRow(str(one.get("prompt", "")), str(one.get("target", "")), answers, marks(key)))
    caption = (
        f"{len(rows)} of {len(ids)} documents, those on which the models differ first; right by "
        f"{metric_name(metric)}, counted over these documents only."
    )
    return Answers(f"{task}: answers", caption, tuple(samples), tuple(rows))
