"""``uncertune evaluate``: every model on every task, each result kept as soon as it is there."""

from __future__ import annotations

import contextlib
import hashlib
import json
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from uncertune.data.rows import Row, read_rows
from uncertune.errors import UserError
from uncertune.evaluation import harness, results
from uncertune.evaluation.contestants import Contestants, end_of_turn, load
from uncertune.evaluation.lineup import Contestant
from uncertune.evaluation.options import TOKENS, EvaluateOptions
from uncertune.evaluation.results import Place
from uncertune.evaluation.tokens import HIGHER_IS_BETTER, measure_tokens
from uncertune.models import attach_head
from uncertune.objectives import FactoredTeacher
from uncertune.report import Table, to_text
from uncertune.runs.environment import environment
from uncertune.runs.folder import check_usable, lock_folder


@dataclass(frozen=True)
class _Prepared:
    """A task with its data read: one of lm-eval's, or the documents of a token-level one."""

    name: str
    task: harness.HarnessTask | None
    documents: list[Row]
    settings: dict[str, Any]
    base_rows: dict[int, FactoredTeacher] = field(default_factory=dict)
    """What the base says of the documents, once it was asked."""


def evaluate(options: EvaluateOptions, models: Contestants | None = None) -> list[dict[str, Any]]:
    """``measure``, and print the table; return all results in the folder."""
    table = measure(options, models)
    folder = Path(str(options.output_dir)).expanduser()
    print(f"{to_text(table)}\n\ntable: {folder / 'results.md'}")
    return results.collect(folder, [str(row["model"]) for row in table.rows], options.chosen_tasks)


def measure(options: EvaluateOptions, models: Contestants | None = None) -> Table:
    """Measure what is missing and write it; return the table of all results in the folder.

    ``models`` are those of the options where they are in memory already.

    Models, adapters and tasks are all loaded before anything is measured, so that a mistake in the last of them costs
    nothing.
    """
    folder = Path(str(options.output_dir)).expanduser()
    check_usable(folder)
    _check_tasks(options)
    models = models or load(options, weights=options.backend == "hf")
    prepared = [_prepare(name, options, models) for name in options.chosen_tasks]
    with contextlib.ExitStack() as stack:
        todo = []
        for one in models.entries:
            (folder / one.label).mkdir(exist_ok=True)
            stack.enter_context(lock_folder(folder / one.label))
        for what in prepared:
            for one in models.entries:
                place = Place(folder, one.label, what.name)
                results.check_alike(place, what.settings)
                if results.is_done(place, models.weights(one), what.settings, overwrite=options.overwrite):
                    print(f"{one.label}: {what.name} is there already", file=sys.stderr)
                else:
                    todo.append((what, one, place))
        _measure(todo, models, options)
        return results.summarise(folder, [one.label for one in models.entries], options.chosen_tasks)


def _check_tasks(options: EvaluateOptions) -> None:
    """What can be known to be wrong before a model is loaded."""
    names = [name for name in options.chosen_tasks if not name.startswith(TOKENS)]
    if names:
        harness.require()
    stems = {Place(Path(), "", name).stem: name for name in options.chosen_tasks}
    if len(stems) < len(options.chosen_tasks):
        raise UserError(f"tasks: two of {options.tasks!r} would be written to one file: name them differently")


def _prepare(name: str, options: EvaluateOptions, models: Contestants) -> _Prepared:
    common: dict[str, Any] = {
        "limit": options.limit_of(name),
        "seed": options.seed,
        "dtype": options.dtype,
        "attn_implementation": options.attn_implementation,
        "backend": options.backend,
        "chat_template": _template_digest(options, models.tokenizer),
    }
    if name.startswith(TOKENS):
        documents = read_rows(
            name.removeprefix(TOKENS),
            models.tokenizer,
            limit=options.limit_of(name),
            max_length=options.max_length,
            data_dir=options.data_dir,
            seed=options.seed,
        )
        digest = hashlib.blake2b(digest_size=8)
        for one in documents:
            digest.update(json.dumps([one.number, {"input_ids": one.input_ids, "labels": one.labels}]).encode())
        settings = {**common, "max_length": options.max_length, "data": digest.hexdigest()}
        return _Prepared(name, None, documents, settings)
    if not options.plain_prompts and not models.tokenizer.chat_template:
        raise UserError(
            f"model {models.base!r} has no chat template: give one with --chat_template_path, or --plain_prompts"
        )
    task = harness.load_task(name, options.data_dir)
    settings = {
        **common,
        "num_fewshot": options.num_fewshot,
        "generation": _generation(task, options, models.tokenizer),
        "versions": task.versions,
        "lm_eval": harness.require(),
    }
    return _Prepared(task.name, task, [], json.loads(json.dumps(settings)))


def _template_digest(options: EvaluateOptions, tokenizer: Any) -> str | None:
    template = tokenizer.chat_template
    if options.plain_prompts or not template:
        return None
    return hashlib.blake2b(str(template).encode(), digest_size=8).hexdigest()


def _generation(task: harness.HarnessTask, options: EvaluateOptions, tokenizer: Any) -> dict[str, Any]:
    """Where answers differ from the task's own settings: their length, and a stop where the template ends a turn."""
    if not task.generates:
        return {}
    out: dict[str, Any] = {}
    if limit := options.max_new_tokens or harness.NEW_TOKENS.get(task.name):
        out["max_gen_toks"] = limit
    end = None if options.plain_prompts else end_of_turn(tokenizer)
    if end is not None and end != tokenizer.eos_token:
        own = [stop for one in task.generates for stop in _stops(one)]
        if end not in own:
            out["until"] = [*dict.fromkeys(own), end]
    return out


def _stops(task: Any) -> list[str]:
    stops = (task.config.generation_kwargs or {}).get("until") or []
    return [stops] if isinstance(stops, str) else list(stops)


# ---- measuring


def _measure(todo: list[tuple[_Prepared, Contestant, Place]], models: Contestants, options: EvaluateOptions) -> None:
    if any(what.task is None for what, _, _ in todo):
        attach_head(models.model)
    lm = _lm(models, options) if any(what.task is not None for what, _, _ in todo) else None
    for what, _, _ in todo:
        if what.task is not None:
            _check_room(what, lm.lm if isinstance(lm, harness.VLLMModels) else lm)
    for what, one, place in todo:
        print(f"== {one.label}: {what.name}", file=sys.stderr, flush=True)
        if options.overwrite:
            place.forget_answers()
        if what.task is None:
            found, samples = _tokens(what, one, models, options)
        else:
            found, samples = _harness(what, one, place, models, lm, options)
        result = {
            "task": what.name,
            "model": one.source,
            "label": one.label,
            "metrics": found.pop("metrics"),
            **found,
            "documents": len(samples),
            "limit": what.settings["limit"],
            "batch_size": options.batch_size,
            "weights": models.weights(one),
            "settings": what.settings,
            "environment": environment(),
        }
        results.write(place, result, samples)
        place.forget_answers()


def _lm(models: Contestants, options: EvaluateOptions) -> Any:
    if options.backend == "hf":
        return harness.hf_model(models.model, models.tokenizer, options.batch_size)
    folders = [str(one.folder) for one in models.entries if one.folder is not None]
    template = models.tokenizer.chat_template
    return harness.VLLMModels(models.path, dtype=options.dtype, seed=options.seed, folders=folders, template=template)


def _harness(
    what: _Prepared, one: Contestant, place: Place, models: Contestants, lm: Any, options: EvaluateOptions
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    assert what.task is not None
    vllm = lm if isinstance(lm, harness.VLLMModels) else None
    lm = vllm.lm if vllm else lm
    with vllm.active(one.folder) if vllm else models.active(one):
        outcome = harness.run(
            lm,
            what.task,
            limit=what.settings["limit"],
            num_fewshot=options.num_fewshot,
            chat_template=not options.plain_prompts,
            generation=what.settings["generation"],
            seed=options.seed,
            kept=place.answers(models.weights(one), what.settings),
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
        print(
            f"{one.label}: {found['prompts_cut']} of {len(samples)} prompts of {what.name} lost their beginning: with "
            f"the answer they are longer than the model's {lm.max_length} tokens",
            file=sys.stderr,
        )
    return found, samples


def _longest_answer(what: _Prepared, lm: Any) -> int:
    assert what.task is not None
    own = [(one.config.generation_kwargs or {}).get("max_gen_toks") for one in what.task.generates]
    lengths = [what.settings["generation"].get("max_gen_toks") or length or lm.max_gen_toks for length in own]
    return max(lengths, default=0)


def _check_room(what: _Prepared, lm: Any) -> None:
    longest = _longest_answer(what, lm)
    if longest >= lm.max_length:
        raise UserError(
            f"max_new_tokens: answers of {longest} tokens ({what.name}) leave no room for a prompt in this model's "
            f"{lm.max_length}: give a smaller number"
        )


def _prompts_cut(what: _Prepared, lm: Any, samples: list[dict[str, Any]]) -> int:
    """How many prompts lm-eval had to cut at the left to leave room for the answer."""
    assert what.task is not None
    if not what.task.generates:
        return 0
    room = lm.max_length - _longest_answer(what, lm)
    return sum(len(lm.tok_encode(one["prompt"])) > room for one in samples)


def _tokens(
    what: _Prepared, one: Contestant, models: Contestants, options: EvaluateOptions
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    base = Contestant("base", models.base)
    with models.active(one):
        found = measure_tokens(
            models.model,
            what.documents,
            pad=models.tokenizer.pad_token_id,
            batch_size=options.batch_size,
            base=(lambda: models.active(base)) if models.adapters else None,
            kept=what.base_rows,
            label=f"({one.label}, {what.name.removeprefix(TOKENS)})",
        )
    samples = []
    for document, sums in zip(what.documents, found.sums, strict=True):
        prompt, answer = _texts(document, models.tokenizer)
        samples.append({"doc_id": document.number, "prompt": prompt, "answer": answer, "scores": sums})
    return {
        "metrics": found.metrics,
        "stderr": found.errors,
        "higher_is_better": HIGHER_IS_BETTER,
        "calibration": found.bins,
    }, samples


def _texts(row: Row, tokenizer: Any) -> tuple[str, str]:
    """The tokens before the first response token, and the response tokens, as text."""
    first = next(place for place, label in enumerate(row.labels) if label != -100)
    answer = [token for token, label in zip(row.input_ids, row.labels, strict=True) if label != -100]
    return tokenizer.decode(row.input_ids[:first]), tokenizer.decode(answer)
