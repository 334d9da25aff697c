"""``uncertune compare``: tasks, answers, judgements and the page, each step kept and none done twice.

``OUT/evaluation`` is what ``uncertune evaluate`` writes, ``OUT/answers`` what ``uncertune generate`` writes,
``OUT/judgements/LABEL.jsonl`` one line a pair and order, ``OUT/verdicts.json`` the rates. Replies lie by content in
``OUT/judgements.cache.jsonl``.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from uncertune.comparison.measures import HEAD_TO_HEAD
from uncertune.comparison.options import CompareOptions
from uncertune.comparison.page import write_comparison
from uncertune.errors import UserError
from uncertune.evaluation.lineup import labels_of
from uncertune.evaluation.options import EvaluateOptions, GenerateOptions, ModelOptions
from uncertune.judging.judge import Judge
from uncertune.judging.judgements import Cache, judge_pairs, write_judgements
from uncertune.judging.pairs import Answers, check_same_prompts, is_answer_file, pairs_of, read_answers, stem
from uncertune.judging.verdicts import verdict
from uncertune.report import Column, Table, to_text
from uncertune.runs.files import write_atomically
from uncertune.runs.folder import check_usable, lock_folder
from uncertune.training.page import link_comparison


def compare(options: CompareOptions) -> Path:
    """Run the missing steps and return the page. Configuration errors are raised first."""
    folder = Path(str(options.output_dir)).expanduser()
    files = [name for name in options.models if is_answer_file(name)]
    models = [name for name in options.models if name not in files]
    named = [stem(name) if name in files else name for name in options.models]
    labels = dict(zip(options.models, labels_of(named, options.chosen_labels), strict=True))
    baseline = _baseline(options, list(labels.values()))
    inside = [name for name in options.chosen_tasks if name in options.in_distribution_tasks]
    if options.judge and options.prompts in options.in_distribution_tasks:
        inside.append(HEAD_TO_HEAD)
    _check_work(options, models)
    check_usable(folder)
    with lock_folder(folder):
        answers = {labels[name]: read_answers(name) for name in files}
        if baseline in answers:
            check_same_prompts(answers, baseline)
        judge = judge_of(options) if options.judge else None
        kept = [(folder / "answers" / f"{labels[name]}.jsonl").is_file() for name in models]
        if judge is not None and (options.overwrite or not all(kept)):
            judge.check()
        _keep(answers, folder / "answers", overwrite=options.overwrite)
        if models:
            answers |= _run_models(options, models, [labels[name] for name in models], folder)
        if options.overwrite:
            (folder / "verdicts.json").unlink(missing_ok=True)
        if judge is not None:
            ordered = {label: answers[label] for label in labels.values()}
            check_same_prompts(ordered, baseline)
            _judge(judge, ordered, {"baseline": baseline, "judge": judge.name, "in_distribution": inside}, folder)
        page = write_comparison(folder, baseline=baseline, in_distribution=inside)
        for name in models:
            link_comparison(name, page)
        return page


def judge_of(options: CompareOptions) -> Judge:
    """The judge that the options name, not yet asked. Raises UserError for one that cannot be."""
    assert options.judge is not None
    if options.judge_url:
        from uncertune.judging.endpoint import Endpoint

        return Endpoint(
            options.judge,
            options.judge_url,
            key_variable=options.judge_key,
            concurrency=options.judge_concurrency,
            timeout=options.judge_timeout,
            retries=options.judge_retries,
            max_tokens=options.judge_max_tokens,
        )
    from uncertune.judging.local import LocalJudge

    return LocalJudge(options.judge, batch_size=options.judge_batch_size)


def _baseline(options: CompareOptions, labels: Sequence[str]) -> str:
    if options.baseline and options.baseline not in labels:
        raise UserError(f"baseline: {options.baseline!r} is none of the models: choose from {', '.join(labels)}")
    return options.baseline or labels[0]


def _check_work(options: CompareOptions, models: Sequence[str]) -> None:
    """Refuse a command that leaves nothing to do, or asks files for what only models can do."""
    if not models and (options.tasks or options.prompts):
        name = "tasks" if options.tasks else "prompts"
        raise UserError(f"{name}: files of answers cannot be asked anything: give models, or leave {name} out")
    if models and options.judge and not options.prompts:
        raise UserError("prompts is missing: say what the judged answers are to, for example --prompts alpaca_eval")
    if models and not options.tasks and not options.prompts:
        raise UserError("tasks is missing: give tasks, or prompts, or both, for example --tasks gsm8k,ifeval")
    if len(models) < len(options.models) and models and not options.prompts:
        raise UserError("prompts is missing: models beside files of answers need the prompts of those")
    if options.baseline and not models and not options.judge:
        raise UserError("judge is missing: files of answers are compared by a judge: give --judge")


def _keep(answers: Mapping[str, Answers], folder: Path, *, overwrite: bool) -> None:
    """Copy the answers of given files beside those of models. Raises UserError where others lie under a label."""
    folder.mkdir(exist_ok=True)
    for label, given in answers.items():
        path = folder / f"{label}.jsonl"
        text = "".join(json.dumps(one, ensure_ascii=False) + "\n" for one in given.values())
        if path.is_file() and not overwrite:
            said = [(name, one["answer"]) for name, one in read_answers(path).items()]
            if said != [(name, one["answer"]) for name, one in given.items()]:
                raise UserError(
                    f"output_dir {str(folder.parent)!r} holds other answers of {label!r}: choose another folder or "
                    "label, or --overwrite"
                )
        else:
            write_atomically(path, text)


def _run_models(
    options: CompareOptions, models: Sequence[str], labels: Sequence[str], folder: Path
) -> dict[str, Answers]:
    """Tasks, then answers, with one base in memory for both."""
    from uncertune.evaluation.contestants import load
    from uncertune.evaluation.evaluate import evaluate
    from uncertune.evaluation.generate import generate

    common: dict[str, Any] = {name: getattr(options, name) for name in ModelOptions.__dataclass_fields__}
    common |= {"models": tuple(models), "labels": ",".join(labels)}
    loaded = load(ModelOptions(**common))
    if options.tasks:
        names = ["tasks", "limit", "num_fewshot", "plain_prompts", "max_length"]
        given = {name: getattr(options, name) for name in names}
        given["limits"] = ",".join(f"{task}={options.limit_of(task)}" for task in options.limited_tasks)
        evaluate(EvaluateOptions(**{**common, **given, "output_dir": str(folder / "evaluation")}), loaded)
    if not options.prompts:
        return {}
    names = ["prompts", "dataset_split", "dataset_config"]
    given = {name: getattr(options, name) for name in names} | {"limit": options.limit_of(options.prompts)}
    files = generate(GenerateOptions(**{**common, **given, "output_dir": str(folder / "answers")}), loaded)
    return {label: read_answers(file) for label, file in zip(labels, files, strict=True)}


def _judge(judge: Judge, answers: Mapping[str, Answers], facts: Mapping[str, Any], folder: Path) -> None:
    """Judge every model against the baseline; write judgements and verdicts, print the rates."""
    (folder / "judgements").mkdir(exist_ok=True)
    cache = Cache(folder / "judgements.cache.jsonl")
    found = {}
    for label, given in answers.items():
        if label == facts["baseline"]:
            continue
        pairs = pairs_of(given, answers[facts["baseline"]])
        judgements = judge_pairs(judge, pairs, cache, label=f"({label})")
        write_judgements(folder / "judgements" / f"{label}.jsonl", judgements)
        found[label] = verdict(pairs, judgements)
        if found[label]["warning"]:
            print(f"{label}: {found[label]['warning']}", file=sys.stderr)
    verdicts = {**facts, "models": found}
    write_atomically(folder / "verdicts.json", json.dumps(verdicts, indent=1, ensure_ascii=False))
    for path in (folder / "judgements").glob("*.jsonl"):
        if path.stem not in found:  # of another baseline; the replies stay in the cache
            path.unlink()
    print(to_text(_table(verdicts)))


def _table(verdicts: Mapping[str, Any]) -> Table:
    """Both readings of each model's judgements, for the terminal; the page has the rest."""
    columns = (
        Column("judged", "judged", None, 0),
        Column("failed", "failed", None, 0),
        Column("raw", "raw", None, 1, percent=True),
        Column("adjusted", "adjusted", None, 1, percent=True),
        Column("interval", "95 %", None, 0),
        Column("decided", "decided", None, 0),
        Column("share", "won", None, 1, percent=True),
        Column("exact", "95 % exact", None, 0),
        Column("position_bias", "position bias", None, 2),
    )
    rows = []
    for label, one in verdicts["models"].items():
        judged = one["outcomes"].get("judged", 0)
        row = {"model": label, "judged": judged, "failed": sum(one["outcomes"].values()) - judged}
        row |= {c.key: one[c.key]["value"] for c in columns if isinstance(one.get(c.key), dict) and c.key != "decided"}
        row["interval"] = _interval(one["adjusted"])
        if one["decided"]:
            share = one["decided"]["share"]
            row |= {"decided": one["decided"]["won"] + one["decided"]["lost"], "exact": _interval(share)}
            row["share"] = share and share["value"]
        rows.append(row)
    caption = (
        f"Win rate over {verdicts['baseline']} as judged by {verdicts['judge']}: raw and adjusted for length and "
        "presentation order; then the prompts on which the judge takes a side in both orders together, and the share "
        "of them won. Position bias in log-odds."
    )
    return Table("Head to head", caption, columns, tuple(rows), "model", None)


def _interval(found: Mapping[str, Any] | None) -> str | None:
    if not found or found["low"] is None or found["high"] is None:
        return None
    return f"{found['low']:.1%} to {found['high']:.1%}"
