"""``compare``: tasks, answers, judgements and the page; each step is stored and not repeated.

``OUT/evaluation`` is what ``uncertune evaluate`` writes, ``OUT/answers`` what ``uncertune generate`` writes,
``OUT/judgements/LABEL.jsonl`` one line per pair and order, ``OUT/verdicts.json`` the rates. Replies are cached by
content in ``OUT/judgements.cache.jsonl``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from uncertune.comparison.measures import HEAD_TO_HEAD
from uncertune.comparison.page import write_comparison
from uncertune.data.sources import own_columns
from uncertune.errors import UserError
from uncertune.evaluation.checks import check_tasks
from uncertune.evaluation.models import labels_of
from uncertune.judging.judge import Judge
from uncertune.judging.judgements import Cache, judge_pairs, write_judgements
from uncertune.judging.pairs import Answers, check_same_prompts, is_answer_file, pairs_of, read_answers, stem
from uncertune.judging.verdicts import verdict
from uncertune.report import Column, Table, to_text
from uncertune.runs.files import write_atomically
from uncertune.runs.folder import lock_folder, output_folder
from uncertune.runs.notes import note
from uncertune.training.page import link_comparison


@dataclass(frozen=True)
class JudgeSettings:
    """The judge and its settings: the command's options of the same names, without ``judge_``."""

    name: str
    url: str | None = None
    key: str | None = None
    concurrency: int = 8
    timeout: float = 120.0
    retries: int = 4
    max_tokens: int = 16
    batch_size: int = 4
    allow_pickle: bool = False

    def judge(self) -> Judge:
        """The judge, before its first question. Raises UserError for unusable settings."""
        if self.url:
            from uncertune.judging.endpoint import Endpoint

            return Endpoint(
                self.name,
                self.url,
                key_variable=self.key,
                concurrency=self.concurrency,
                timeout=self.timeout,
                retries=self.retries,
                max_tokens=self.max_tokens,
            )
        from uncertune.judging.local import LocalJudge

        return LocalJudge(self.name, batch_size=self.batch_size, allow_pickle=self.allow_pickle)


@dataclass(frozen=True)
class _Work:
    """The models and the files of answers to compare, by label."""

    labels: dict[str, str]
    models: list[str]
    files: list[str]
    baseline: str
    inside: list[str]


def compare(
    models: Sequence[str],
    *,
    output_dir: str | Path,
    tasks: Sequence[str] = (),
    prompts: str | None = None,
    judge: JudgeSettings | None = None,
    baseline: str | None = None,
    in_distribution: Sequence[str] = (),
    labels: Sequence[str] = (),
    dataset_split: str | None = None,
    dataset_config: str | None = None,
    limit: int | None = None,
    limits: Mapping[str, int] | None = None,
    num_fewshot: int | None = None,
    plain_prompts: bool = False,
    max_length: int = 1024,
    max_new_tokens: int | None = None,
    batch_size: int = 16,
    seed: int = 1234,
    data_dir: str | None = None,
    dataset_columns: Mapping[str, str] | None = None,
    chat_template_path: str | None = None,
    dtype: str = "auto",
    attn_implementation: str | None = None,
    allow_pickle: bool = False,
    overwrite: bool = False,
) -> Path:
    """Run the missing steps and return the page. Configuration errors are raised first.

    Args:
        models: a model and LoRA adapters of it, or files of answers.
        tasks: as for ``measure``; ``prompts`` are the prompts of the judged answers, as for ``generate``.
        baseline: label of the model that all others are compared with; the first by default.
        in_distribution: the tasks and prompts that are like the training data.
        limit: documents of each task and prompts, the first ones; ``limits`` of single tasks and of the prompts.
        overwrite: measure and answer again; judgements of unchanged answers are kept.

    The other arguments are those of ``measure`` and ``generate``. Raises UserError, one line.
    """
    work = _plan(models, labels, baseline, in_distribution, tasks, prompts, judge)
    limits = limits or {}
    folder = Path(output_dir).expanduser()
    with output_folder(folder), lock_folder(folder):
        answers = {work.labels[name]: read_answers(name) for name in work.files}
        if work.baseline in answers:
            check_same_prompts(answers, work.baseline)
        asked = judge.judge() if judge else None
        known = [(folder / "answers" / f"{work.labels[name]}.jsonl").is_file() for name in work.models]
        if asked is not None and (overwrite or not all(known)):
            asked.check()
        _keep(answers, folder / "answers", overwrite=overwrite)
        if work.models:
            from uncertune.evaluation.evaluate import evaluate
            from uncertune.evaluation.generate import generate
            from uncertune.evaluation.models import load_models

            own = [work.labels[name] for name in work.models]
            same: dict[str, Any] = {"dtype": dtype, "attn_implementation": attn_implementation}
            loaded = load_models(
                work.models, own, chat_template_path=chat_template_path, allow_pickle=allow_pickle, **same
            )
            same |= {"max_new_tokens": max_new_tokens, "batch_size": batch_size, "seed": seed}
            same |= {"data_dir": data_dir, "overwrite": overwrite}
            if tasks:
                evaluate(
                    loaded,
                    tasks=tasks,
                    output_dir=folder / "evaluation",
                    limit=limit,
                    limits={task: count for task, count in limits.items() if task in tasks},
                    num_fewshot=num_fewshot,
                    plain_prompts=plain_prompts,
                    max_length=max_length,
                    dataset_columns=dataset_columns,
                    **same,
                )
            if prompts:
                files = generate(
                    loaded,
                    prompts=prompts,
                    output_dir=folder / "answers",
                    dataset_split=dataset_split,
                    dataset_config=dataset_config,
                    dataset_columns=own_columns(prompts, dataset_columns),
                    limit=limits.get(prompts, limit),
                    **same,
                )
                answers |= {label: read_answers(file) for label, file in zip(own, files, strict=True)}
        if overwrite:
            (folder / "verdicts.json").unlink(missing_ok=True)
        if asked is not None:
            ordered = {label: answers[label] for label in work.labels.values()}
            check_same_prompts(ordered, work.baseline)
            facts = {"baseline": work.baseline, "judge": asked.name, "in_distribution": work.inside}
            _judge(asked, ordered, facts, folder)
        page = write_comparison(folder, baseline=work.baseline, in_distribution=work.inside)
        for name in work.models:
            link_comparison(name, page)
        return page


def _plan(
    names: Sequence[str],
    given: Sequence[str],
    baseline: str | None,
    in_distribution: Sequence[str],
    tasks: Sequence[str],
    prompts: str | None,
    judge: JudgeSettings | None,
) -> _Work:
    """The models, files and baseline of the comparison. Raises UserError for an impossible comparison."""
    if len(names) < 2:
        raise UserError("models: a comparison needs two or more: give a model and adapters, or files of answers")
    files = [name for name in names if is_answer_file(name)]
    models = [name for name in names if name not in files]
    named = [stem(name) if name in files else name for name in names]
    labels = dict(zip(names, labels_of(named, given), strict=True))
    if baseline and baseline not in labels.values():
        raise UserError(
            f"baseline: {baseline!r} is not a model of this comparison: choose from {', '.join(labels.values())}"
        )
    if tasks:
        check_tasks(tasks, {})
    inside = [name for name in tasks if name in in_distribution]
    if judge and prompts in in_distribution:
        inside.append(HEAD_TO_HEAD)
    _check_work(models, files, tasks, prompts, judge, baseline)
    return _Work(labels, models, files, baseline or labels[names[0]], inside)


def _check_work(
    models: Sequence[str],
    files: Sequence[str],
    tasks: Sequence[str],
    prompts: str | None,
    judge: JudgeSettings | None,
    baseline: str | None,
) -> None:
    """Refuse a comparison with nothing to do, and arguments that need models where only files of answers are given."""
    if not models and (tasks or prompts):
        name = "tasks" if tasks else "prompts"
        raise UserError(f"{name}: files of answers cannot be asked anything: give models, or leave {name} out")
    if models and judge and not prompts:
        raise UserError("prompts is missing: give the prompts of the judged answers, for example --prompts alpaca_eval")
    if models and not tasks and not prompts:
        raise UserError("tasks is missing: give tasks, or prompts, or both, for example --tasks gsm8k,ifeval")
    if files and models and not prompts:
        raise UserError("prompts is missing: models need the prompts that the files of answers belong to")
    if baseline and not models and not judge:
        raise UserError("judge is missing: files of answers are compared by a judge: give --judge")


def _keep(answers: Mapping[str, Answers], folder: Path, *, overwrite: bool) -> None:
    """Copy the given files of answers into the folder. Raises UserError if a label has other answers there."""
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
            note(f"{label}: {found[label]['warning']}")
    verdicts = {**facts, "models": found}
    write_atomically(folder / "verdicts.json", json.dumps(verdicts, indent=1, ensure_ascii=False))
    for path in (folder / "judgements").glob("*.jsonl"):
        if path.stem not in found:  # judged against another baseline; the replies stay in the cache
            path.unlink()
    print(to_text(_table(verdicts)))


def _table(verdicts: Mapping[str, Any]) -> Table:
    """Both readings of each model's judgements, for the terminal; the page has more."""
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
