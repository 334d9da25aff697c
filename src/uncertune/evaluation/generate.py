"""``generate``: answers of several models to the same prompts, one line each; an interrupted run can be resumed.

``OUT/LABEL.jsonl`` has one line per prompt, in the order of the prompts, and exists only when it is complete; until
then the answers so far are in ``OUT/LABEL.partial.jsonl``. ``OUT/LABEL.settings.json`` has their settings.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from uncertune.data import chat
from uncertune.data.files import first_line
from uncertune.data.prompts import Prompt as Asked
from uncertune.data.sources import load_prompts
from uncertune.data.turns import Messages
from uncertune.errors import UserError
from uncertune.evaluation.checks import check_sampling
from uncertune.evaluation.models import LoadedModels, ModelSpec, load_models
from uncertune.evaluation.tokenizers import end_of_turn
from uncertune.models.decoding import GREEDY, decode, end_tokens
from uncertune.runs.environment import environment
from uncertune.runs.files import write_atomically
from uncertune.runs.folder import lock_folder, output_folder
from uncertune.runs.notes import note, progress

NEW_TOKENS = 1024


@dataclass(frozen=True)
class Prompt:
    """A conversation, its id (a hash of its content), and its tokens, which end with the generation prompt."""

    id: str
    asked: Asked
    input_ids: list[int]


@dataclass(frozen=True)
class Answer:
    """A generated answer: its text without end-of-turn tokens, its number of tokens, and whether it ended by itself."""

    text: str
    tokens: int
    ended: bool


@dataclass(frozen=True)
class _How:
    """Settings of the generation."""

    max_new_tokens: int
    temperature: float
    top_p: float
    seed: int
    batch_size: int


def generate(
    models: Sequence[str] | LoadedModels,
    *,
    output_dir: str | Path,
    prompts: str = "alpaca_eval",
    labels: Sequence[str] = (),
    dataset_split: str | None = None,
    dataset_config: str | None = None,
    limit: int | None = None,
    max_new_tokens: int | None = None,
    temperature: float = 0.0,
    top_p: float = 1.0,
    batch_size: int = 16,
    seed: int = 0,
    data_dir: str | None = None,
    dataset_columns: Mapping[str, str] | None = None,
    chat_template_path: str | None = None,
    dtype: str = "auto",
    attn_implementation: str | None = None,
    allow_pickle: bool = False,
    overwrite: bool = False,
) -> list[Path]:
    """Write the missing answers to ``output_dir``; return the files, one per model.

    Each adapter is used with the tokenizer, chat template and stop tokens that it was saved with.

    Args:
        models: a model and LoRA adapters of it (folders, runs, hub ids), or loaded ones.
        prompts: a data set, a file with messages or prompts, a folder or a hub id; ``limit`` takes the first ones.
        dataset_columns: for columns of other names: the name known to ``uncertune.data`` to the name in the data.
        max_new_tokens: longest answer, in tokens; 1024 by default.
        temperature: 0 takes the likeliest token, above 0 samples from the likeliest that make up ``top_p``.
        allow_pickle: load weights that are stored as a pickle; reading one can run code that it holds.
        overwrite: answer again what the folder holds of these models.

    Raises UserError for anything that cannot be loaded, prompted or written.
    """
    check_sampling(temperature, top_p)
    folder = Path(output_dir).expanduser()
    with output_folder(folder):
        asked = load_prompts(
            prompts,
            config=dataset_config,
            split=dataset_split,
            data_dir=data_dir,
            columns=dataset_columns,
            max_samples=limit,
            seed=seed,
        )
        models = load_models(
            models,
            labels,
            chat_template_path=chat_template_path,
            dtype=dtype,
            attn_implementation=attn_implementation,
            allow_pickle=allow_pickle,
        )
        how = _How(max_new_tokens or NEW_TOKENS, temperature, top_p, seed, batch_size)
        to_answer = {one.label: _encoded_for(models, one, asked, how.max_new_tokens) for one in models.specs}
        with lock_folder(folder):
            for one in models.specs:
                settings = {**_settings(how, to_answer[one.label], models, one, attn_implementation)}
                _begin(folder, one, {**settings, "weights": models.weights(one)}, prompts, overwrite=overwrite)
            for one in models.specs:
                _answer_all(folder, one, to_answer[one.label], models, how)
    return [folder / f"{one.label}.jsonl" for one in models.specs]


def answer(
    models: Sequence[str] | LoadedModels,
    questions: Sequence[str | Messages],
    *,
    labels: Sequence[str] = (),
    max_new_tokens: int | None = None,
    temperature: float = 0.0,
    top_p: float = 1.0,
    batch_size: int = 16,
    seed: int = 0,
    chat_template_path: str | None = None,
    dtype: str = "auto",
    attn_implementation: str | None = None,
    allow_pickle: bool = False,
) -> dict[str, list[Answer]]:
    """Answers to questions or conversations, by label; nothing is written. Arguments as for ``generate``."""
    check_sampling(temperature, top_p)
    models = load_models(
        models,
        labels,
        chat_template_path=chat_template_path,
        dtype=dtype,
        attn_implementation=attn_implementation,
        allow_pickle=allow_pickle,
    )
    how = _How(max_new_tokens or NEW_TOKENS, temperature, top_p, seed, batch_size)
    prompts = [Asked([{"role": "user", "content": one}] if isinstance(one, str) else one) for one in questions]
    out = {}
    for one in models.specs:
        asked = _encoded_for(models, one, prompts, how.max_new_tokens)
        answers: dict[str, Answer] = {}
        with models.active(one) as model:
            for batch in _batches(list({prompt.id: prompt for prompt in asked}.values()), how.batch_size):
                found = answer_batch(model, models.tokenizers[one.label], batch, how)
                answers |= {prompt.id: said for prompt, said in zip(batch, found, strict=True)}
        out[one.label] = [answers[prompt.id] for prompt in asked]
    return out


def _encoded_for(models: LoadedModels, one: ModelSpec, prompts: Sequence[Asked], limit: int) -> list[Prompt]:
    """The prompts as token ids of ``one``, checked against its context length and its vocabulary."""
    asked = encoded(models.tokenizers[one.label], prompts, one.source)
    model = models.models[one.label]
    room = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    longest = max(len(prompt.input_ids) for prompt in asked)
    if room and longest + limit > room:
        raise UserError(
            f"max_new_tokens: the longest prompt has {longest} tokens, and {limit} more do not fit the model's {room}: "
            "give a smaller number"
        )
    rows = model.get_input_embeddings().weight.shape[0]
    largest = max(max(prompt.input_ids, default=0) for prompt in asked)
    if largest >= rows:
        raise UserError(
            f"model {one.source!r}: its tokenizer gives token {largest}, and the model has {rows} rows: the tokenizer "
            "belongs to another model"
        )
    return asked


def encoded(tokenizer: Any, prompts: Sequence[Asked], model: str) -> list[Prompt]:
    """Prompts as token ids by the chat template. Raises UserError if it is missing or refuses a prompt."""
    if not tokenizer.chat_template:
        raise UserError(f"model {model!r} has no chat template: give one with --chat_template_path")
    out = []
    for number, one in enumerate(prompts):
        where = f"prompts: prompt {number} ({one.id})"
        ids, _ = chat.encode(tokenizer, one.messages, where, tools=one.tools, add_generation_prompt=True)
        out.append(Prompt(one.id, one, ids))
    return out


def _settings(
    how: _How, asked: Sequence[Prompt], models: LoadedModels, one: ModelSpec, attn_implementation: str | None
) -> dict[str, Any]:
    """Everything that the answers depend on, except for the weights."""
    digest = hashlib.blake2b(digest_size=8)
    for prompt in asked:
        digest.update(json.dumps([prompt.id, prompt.input_ids]).encode())
    model = models.models[one.label]
    return {
        "prompts": digest.hexdigest(),
        "max_new_tokens": how.max_new_tokens,
        "temperature": how.temperature,
        "top_p": how.top_p,
        "seed": how.seed if how.temperature else None,
        "batch_size": how.batch_size,
        "dtype": str(model.dtype).removeprefix("torch."),
        "attn_implementation": attn_implementation,
        "stops": sorted(stop_tokens(model, models.tokenizers[one.label])),
    }


# ---- files


def _begin(folder: Path, one: ModelSpec, settings: dict[str, Any], prompts: str, *, overwrite: bool) -> None:
    """Claim the label for these answers. Raises UserError if the folder has others under it."""
    path = folder / f"{one.label}.settings.json"
    files = [folder / f"{one.label}.jsonl", _partial(folder, one)]
    if overwrite:
        for file in files:
            file.unlink(missing_ok=True)
    elif path.is_file():
        there = _read_settings(path)
        for name, value in settings.items():
            if there.get(name) != value:
                raise UserError(
                    f"output_dir {str(folder)!r} holds answers of {one.label!r} with {name} {there.get(name)!r}, here "
                    f"it is {value!r}: choose another folder or label, or --overwrite"
                )
    elif files[0].exists():
        raise UserError(f"output_dir: {str(files[0])!r} was not written by this command: choose another folder")
    record = {"model": one.source, "data": prompts, "settings": settings, "environment": environment()}
    write_atomically(path, json.dumps(record, indent=1))


def _read_settings(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))["settings"]
    except (OSError, ValueError, LookupError, TypeError, RecursionError) as error:
        raise UserError(f"{str(path)!r} is damaged ({first_line(error)}): delete it, or --overwrite") from error
    return found if isinstance(found, dict) else {}


def _partial(folder: Path, one: ModelSpec) -> Path:
    return folder / f"{one.label}.partial.jsonl"


def _read(path: Path) -> dict[str, dict[str, Any]]:
    """The complete lines of an unfinished file by prompt; a line that a crash truncated is removed from the file."""
    if not path.is_file():
        return {}
    content = path.read_bytes()
    complete = content[: content.rfind(b"\n") + 1]
    if len(complete) < len(content):
        path.write_bytes(complete)
    try:
        return {line["id"]: line for line in map(json.loads, complete.decode("utf-8").split("\n")[:-1])}
    except (ValueError, LookupError, TypeError, RecursionError) as error:
        raise UserError(f"{str(path)!r} is damaged ({first_line(error)}): delete it, or --overwrite") from error


def _answer_all(folder: Path, one: ModelSpec, asked: Sequence[Prompt], models: LoadedModels, how: _How) -> None:
    final, partial = folder / f"{one.label}.jsonl", _partial(folder, one)
    if final.is_file():
        note(f"{one.label}: {final} is there already")
        return
    done = _read(partial)
    bar = progress(len(asked), f"answers ({one.label})", "answers", initial=len(done))
    with models.active(one) as model, open(partial, "a", encoding="utf-8") as file:
        for batch in _batches(asked, how.batch_size):
            if all(prompt.id in done for prompt in batch):
                continue
            answers = answer_batch(model, models.tokenizers[one.label], batch, how)
            lines = [_line(prompt, said, one) for prompt, said in zip(batch, answers, strict=True)]
            file.write("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
            file.flush()
            os.fsync(file.fileno())
            bar.update(sum(line["id"] not in done for line in lines))
            done |= {line["id"]: line for line in lines}
    bar.close()
    write_atomically(final, "".join(json.dumps(done[p.id], ensure_ascii=False) + "\n" for p in asked))
    partial.unlink()
    cut = sum(not line["ended"] for line in done.values())
    print(f"{one.label}: {len(done)} answers in {final}, {cut} of them cut at {how.max_new_tokens} tokens")


def _line(prompt: Prompt, answer: Answer, one: ModelSpec) -> dict[str, Any]:
    return {
        "id": prompt.id,
        "messages": prompt.asked.messages,
        **({"tools": prompt.asked.tools} if prompt.asked.tools else {}),
        "answer": answer.text,
        "model": one.source,
        "tokens": answer.tokens,
        "ended": answer.ended,
    }


# ---- one batch


def _batches(asked: Sequence[Prompt], size: int) -> Iterator[list[Prompt]]:
    """Batches in a fixed order: longest prompts first."""
    order = sorted(asked, key=lambda one: (-len(one.input_ids), one.id))
    for start in range(0, len(order), size):
        yield order[start : start + size]


def answer_batch(model: Any, tokenizer: Any, batch: Sequence[Prompt], how: _How) -> list[Answer]:
    """Answers of the model in its current state, greedy or sampled; random numbers depend on the seed and the batch."""
    device, sampling = next(model.parameters()).device, GREEDY
    if how.temperature:
        sampling = {"do_sample": True, "temperature": how.temperature, "top_p": how.top_p, "top_k": 0}
    seed = int.from_bytes(hashlib.sha256(f"{how.seed} {batch[0].id}".encode()).digest()[:7], "big")
    stops = stop_tokens(model, tokenizer)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        found = decode(
            model,
            [one.input_ids for one in batch],
            max_new_tokens=how.max_new_tokens,
            ends=stops,
            pad=tokenizer.pad_token_id,
            sampling=sampling,
        )
    return [_answer(row, stops, tokenizer) for row in found]


def _answer(row: list[int], stops: set[int], tokenizer: Any) -> Answer:
    ended = row[-1] in stops
    said = row[:-1] if ended else row
    return Answer(tokenizer.decode(said, skip_special_tokens=True).strip(), len(said), ended)


def stop_tokens(model: Any, tokenizer: Any) -> set[int]:
    """The tokens that end an answer: the model's, the tokenizer's, and the chat template's end-of-turn token."""
    end = tokenizer(end_of_turn(tokenizer) or "", add_special_tokens=False)["input_ids"]
    return end_tokens(model, tokenizer) | (set(end) if len(end) == 1 else set())
