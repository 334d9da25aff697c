"""``measure``: every model on every task; each result is written at once."""

from __future__ import annotations

import contextlib
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from uncertune.data.rows import Row
from uncertune.errors import UserError
from uncertune.evaluation import harness, results
from uncertune.evaluation.answering import Answering
from uncertune.evaluation.checks import TOKENS, check_tasks, short_name
from uncertune.evaluation.models import LoadedModels, ModelSpec, load_models
from uncertune.evaluation.preparation import How, Prepared, prepare
from uncertune.evaluation.results import Place
from uncertune.evaluation.tokenizers import tokenizer_digest
from uncertune.evaluation.tokens import HIGHER_IS_BETTER, measure_tokens
from uncertune.models import attached_head
from uncertune.report import Table, terminal_width, to_text
from uncertune.runs.environment import environment
from uncertune.runs.folder import lock_folder, output_folder
from uncertune.runs.notes import note


@dataclass(frozen=True)
class _Job:
    """One model on one task."""

    what: Prepared
    one: ModelSpec
    place: Place


def evaluate(models: Sequence[str] | LoadedModels, **arguments: Any) -> list[dict[str, Any]]:
    """Call ``measure`` and print its table; return all results in the folder."""
    table = measure(models, **arguments)
    folder = Path(str(arguments["output_dir"])).expanduser()
    caption = textwrap.fill(table.caption, terminal_width())
    print(f"{to_text(table)}\n\n{caption}\n\ntable: {folder / 'results.md'}")
    return results.collect(folder, [str(row["model"]) for row in table.rows], list(arguments["tasks"]))


def measure(
    models: Sequence[str] | LoadedModels,
    *,
    tasks: Sequence[str],
    output_dir: str | Path,
    labels: Sequence[str] = (),
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
    backend: str = "hf",
    overwrite: bool = False,
) -> Table:
    """Measure models on tasks, write the missing results to ``output_dir``, and return the table of all its results.

    Models, adapters and tasks are all loaded before anything is measured, so that mistakes show at once. Each adapter
    is measured with the tokenizer and chat template that it was saved with.

    Args:
        models: a model and LoRA adapters of it (folders, runs, hub ids), or loaded ones.
        tasks: lm-eval's names, or ``tokens:DATA`` and ``tokens:DATA@SPLIT`` for measures on response tokens.
        labels: one for each model; by default the last part of each path.
        limit: documents of each task, the first ones; ``limits`` of single tasks.
        num_fewshot: worked examples in a prompt; each task's own number by default.
        plain_prompts: prompts as the tasks write them, without the chat template.
        max_length: tokens after which a document of ``tokens:DATA`` is cut.
        max_new_tokens: longest answer; 512 for gsm8k, else the task's own.
        dataset_columns: for columns of other names in ``tokens:DATA`` that is not built in: known name to given name.
        allow_pickle: load weights that are stored as a pickle; reading one can run code that it holds.
        backend: ``hf`` (transformers) or ``vllm``.
        overwrite: measure again the results that the folder has of these models and tasks.

    Raises UserError for anything that cannot be loaded, measured or written.
    """
    check_tasks(tasks, limits or {}, max_length=max_length, num_fewshot=num_fewshot, backend=backend)
    how = How(
        limit, limits or {}, num_fewshot, plain_prompts, max_length, max_new_tokens, batch_size, seed, data_dir,
        dataset_columns, dtype, attn_implementation, backend, overwrite,
    )  # fmt: skip
    folder = Path(output_dir).expanduser()
    with contextlib.ExitStack() as stack:
        stack.enter_context(output_folder(folder))
        _check_names(tasks)
        models = load_models(
            models,
            labels,
            chat_template_path=chat_template_path,
            dtype=dtype,
            attn_implementation=attn_implementation,
            allow_pickle=allow_pickle,
            weights=backend == "hf",
        )
        for one in models.specs:
            (folder / one.label).mkdir(exist_ok=True)
            stack.enter_context(lock_folder(folder / one.label))
        _measure(list(_jobs(folder, tasks, models, how)), models, how)
        return results.summarise(folder, [one.label for one in models.specs], tasks)


def _check_names(tasks: Sequence[str]) -> None:
    """Raise UserError for tasks that cannot be measured together, before a model is loaded."""
    if any(not name.startswith(TOKENS) for name in tasks):
        harness.require()
    if len({Place(Path(), "", name).stem for name in tasks}) < len(tasks):
        raise UserError(f"tasks: two of {', '.join(tasks)} would be written to one file: name them differently")


def _jobs(folder: Path, tasks: Sequence[str], models: LoadedModels, how: How) -> list[_Job]:
    """The missing measurements, task by task; every task is prepared once per tokenizer."""
    prepared: dict[tuple[str, str], Prepared] = {}
    digests = {label: tokenizer_digest(one) for label, one in models.tokenizers.items()}
    loaded = {name: harness.load_task(name, how.data_dir) for name in tasks if not name.startswith(TOKENS)}
    jobs = []
    for name in tasks:
        for one in models.specs:
            key = name, digests[one.label]
            if key not in prepared:
                tokenizer = models.tokenizers[one.label]
                prepared[key] = prepare(name, loaded.get(name), one, tokenizer, digests[one.label], how)
            what = prepared[key]
            place = Place(folder, one.label, what.name)
            results.check_alike(place, what.settings, what.preparation)
            measured = {"weights": models.weights(one), "settings": what.settings, "preparation": what.preparation}
            if results.is_done(place, measured, overwrite=how.overwrite):
                note(f"{one.label}: {short_name(what.name)} is there already")
            else:
                jobs.append(_Job(what, one, place))
    return jobs


# ---- measuring


def _measure(jobs: Sequence[_Job], models: LoadedModels, how: How) -> None:
    with contextlib.ExitStack() as stack:
        if any(job.what.task is None for job in jobs):
            for model in models.models.values():
                # an attached head refers to its model, which would stay in memory until Python looks for cycles
                stack.enter_context(attached_head(model))
        _measure_all(jobs, models, how)


def _measure_all(jobs: Sequence[_Job], models: LoadedModels, how: How) -> None:
    answering = Answering(models, how.batch_size, how.backend, how.dtype, how.seed)
    for job in jobs:
        _check_vocabulary(job, models)
        if job.what.task is not None:
            _check_room(job.what, answering.lm(job.one))
    for job in jobs:
        what, one, place = job.what, job.one, job.place
        note(f"== {one.label}: {short_name(what.name)}")
        if how.overwrite:
            place.forget_answers()
        found, samples = _tokens(job, models, how) if what.task is None else _harness(job, models, answering, how)
        result = {
            "task": what.name,
            "model": one.source,
            "label": one.label,
            "metrics": found.pop("metrics"),
            **found,
            "documents": len(samples),
            "limit": what.settings["limit"],
            "batch_size": how.batch_size,
            "weights": models.weights(one),
            "settings": what.settings,
            "preparation": what.preparation,
            "environment": environment(),
        }
        results.write(place, result, samples)
        place.forget_answers()


def _check_vocabulary(job: _Job, models: LoadedModels) -> None:
    """Raise UserError if a document has a token outside the model's embedding."""
    if job.what.task is not None:
        return
    rows = models.models[job.one.label].get_input_embeddings().weight.shape[0]
    largest = max(max(document.input_ids) for document in job.what.documents)
    if largest >= rows:
        raise UserError(
            f"model {job.one.source!r}: its tokenizer gives token {largest}, but its embedding has {rows} rows: the "
            "tokenizer belongs to another model"
        )


def _harness(
    job: _Job, models: LoadedModels, answering: Answering, how: How
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    what, one = job.what, job.one
    assert what.task is not None
    lm = answering.lm(one)
    with answering.active(one):
        outcome = harness.run(
            lm,
            what.task,
            limit=what.settings["limit"],
            num_fewshot=how.num_fewshot,
            chat_template=not how.plain_prompts,
            generation=what.preparation["generation"],
            seed=how.seed,
            kept=job.place.answers(models.weights(one), {**what.settings, **what.preparation}),
        )
    samples = harness.documents(what.task, outcome)
    found = {
        "metrics": outcome.metrics,
        "stderr": outcome.errors,
        "higher_is_better": outcome.higher_is_better,
        "num_fewshot": outcome.num_fewshot,
        "prompts_cut": _prompts_cut(what, lm, samples),
    }
    if found["prompts_cut"]:
        note(
            f"{one.label}: {found['prompts_cut']} of {len(samples)} prompts of {what.name} lost their beginning: with "
            f"the answer they are longer than the model's {lm.max_length} tokens"
        )
    return found, samples


def _longest_answer(what: Prepared, lm: Any) -> int:
    assert what.task is not None
    own = [(one.config.generation_kwargs or {}).get("max_gen_toks") for one in what.task.generates]
    lengths = [what.preparation["generation"].get("max_gen_toks") or length or lm.max_gen_toks for length in own]
    return max(lengths, default=0)


def _check_room(what: Prepared, lm: Any) -> None:
    longest = _longest_answer(what, lm)
    if longest >= lm.max_length:
        raise UserError(
            f"max_new_tokens: answers of {longest} tokens ({what.name}) leave no room for a prompt in this model's "
            f"{lm.max_length}: give a smaller number"
        )


def _prompts_cut(what: Prepared, lm: Any, samples: list[dict[str, Any]]) -> int:
    """The number of prompts that lm-eval truncated at the left to leave room for the answer."""
    assert what.task is not None
    if not what.task.generates:
        return 0
    room = lm.max_length - _longest_answer(what, lm)
    return sum(len(lm.tok_encode(one["prompt"])) > room for one in samples)


def _tokens(job: _Job, models: LoadedModels, how: How) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    what, one = job.what, job.one
    tokenizer = models.tokenizers[one.label]
    has_base = bool(models.adapters) and one.label not in models.resized
    if one.label in models.resized:
        note(f"{one.label}: no KL from the base, whose vocabulary has another size")
    with models.active(one) as model:
        found = measure_tokens(
            model,
            what.documents,
            pad=tokenizer.pad_token_id,
            batch_size=how.batch_size,
            base=(lambda: models.as_base(one)) if has_base else None,
            kept=what.base_rows if has_base else None,
            label=f"({one.label}, {what.name.removeprefix(TOKENS)})",
        )
    samples = []
    for document, sums in zip(what.documents, found.sums, strict=True):
        prompt, answer = _texts(document, tokenizer)
        samples.append({"doc_id": document.number, "prompt": prompt, "answer": answer, "scores": sums})
    return {
        "metrics": found.metrics,
        "stderr": found.errors,
        "higher_is_better": HIGHER_IS_BETTER,
        "calibration": found.bins,
    }, samples


def _texts(row: Row, tokenizer: Any) -> tuple[str, str]:
    """The text before the first response token, and the text of the response tokens."""
    first = next(place for place, label in enumerate(row.labels) if label != -100)
    answer = [token for token, label in zip(row.input_ids, row.labels, strict=True) if label != -100]
    return tokenizer.decode(row.input_ids[:first]), tokenizer.decode(answer)
