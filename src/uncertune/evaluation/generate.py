"""``uncertune generate``: answers of several models to the same prompts, one line each, going on where it stopped.

``OUT/LABEL.jsonl`` has one line a prompt, in the order of the prompts, and stands only when it is complete; until then
the answers so far lie in ``OUT/LABEL.partial.jsonl``. ``OUT/LABEL.settings.json`` says how they were made.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from uncertune.data import chat
from uncertune.data.prompts import Prompt as Asked
from uncertune.data.sources import load_prompts
from uncertune.errors import UserError
from uncertune.evaluation.contestants import Contestants, end_of_turn, load
from uncertune.evaluation.lineup import Contestant
from uncertune.evaluation.options import GenerateOptions
from uncertune.runs.environment import environment
from uncertune.runs.files import write_atomically
from uncertune.runs.folder import check_usable, lock_folder

NEW_TOKENS = 1024


@dataclass(frozen=True)
class Prompt:
    """A conversation, its name (a hash of its content), and its tokens with the opening of the answer."""

    id: str
    asked: Asked
    input_ids: list[int]


@dataclass(frozen=True)
class Answer:
    """What was generated: the text without end-of-turn tokens, how many tokens, and whether it ended by itself."""

    text: str
    tokens: int
    ended: bool


def generate(options: GenerateOptions, models: Contestants | None = None) -> list[Path]:
    """Answer what is missing; return the files, one a model. ``models`` are those of the options, if in memory."""
    folder = Path(str(options.output_dir)).expanduser()
    check_usable(folder)
    prompts = load_prompts(
        options.prompts,
        config=options.dataset_config,
        split=options.dataset_split,
        data_dir=options.data_dir,
        max_samples=options.limit,
        seed=options.seed,
    )
    models = models or load(options)
    asked = encoded(models.tokenizer, prompts, models.base)
    limit = options.max_new_tokens or NEW_TOKENS
    _check_room(asked, limit, models)
    settings = _settings(options, asked, models, limit)
    with lock_folder(folder):
        for one in models.entries:
            _begin(folder, one, {**settings, "weights": models.weights(one)}, options)
        for one in models.entries:
            _answer_all(folder, one, asked, models, options, limit)
    return [folder / f"{one.label}.jsonl" for one in models.entries]


def encoded(tokenizer: Any, prompts: Sequence[Asked], model: str) -> list[Prompt]:
    """Prompts as token ids by the chat template. Raises UserError where there is none, or it refuses one of them."""
    if not tokenizer.chat_template:
        raise UserError(f"model {model!r} has no chat template: give one with --chat_template_path")
    out = []
    for number, one in enumerate(prompts):
        where = f"prompts: prompt {number} ({one.id})"
        ids, _ = chat.encode(tokenizer, one.messages, where, tools=one.tools, add_generation_prompt=True)
        out.append(Prompt(one.id, one, ids))
    return out


def _check_room(asked: Sequence[Prompt], limit: int, models: Contestants) -> None:
    room = getattr(models.model.config.get_text_config(), "max_position_embeddings", None)
    longest = max(len(one.input_ids) for one in asked)
    if room and longest + limit > room:
        raise UserError(
            f"max_new_tokens: the longest prompt has {longest} tokens, and {limit} more do not fit the model's {room}: "
            "give a smaller number"
        )


def _settings(options: GenerateOptions, asked: Sequence[Prompt], models: Contestants, limit: int) -> dict[str, Any]:
    digest = hashlib.blake2b(digest_size=8)
    for one in asked:
        digest.update(json.dumps([one.id, one.input_ids]).encode())
    return {
        "prompts": digest.hexdigest(),
        "max_new_tokens": limit,
        "temperature": options.temperature,
        "top_p": options.top_p,
        "seed": options.seed if options.temperature else None,
        "batch_size": options.batch_size,
        "dtype": str(models.model.dtype).removeprefix("torch."),
        "attn_implementation": options.attn_implementation,
    }


# ---- files


def _begin(folder: Path, one: Contestant, settings: dict[str, Any], options: GenerateOptions) -> None:
    """Claim the label for these answers. Raises UserError where others lie under it."""
    path = folder / f"{one.label}.settings.json"
    files = [folder / f"{one.label}.jsonl", _partial(folder, one)]
    if options.overwrite:
        for file in files:
            file.unlink(missing_ok=True)
    elif path.is_file():
        there = json.loads(path.read_text(encoding="utf-8")).get("settings", {})
        for name, value in settings.items():
            if there.get(name) != value:
                raise UserError(
                    f"output_dir {str(folder)!r} holds answers of {one.label!r} with {name} {there.get(name)!r}, here "
                    f"it is {value!r}: choose another folder or label, or --overwrite"
                )
    elif files[0].exists():
        raise UserError(f"output_dir: {str(files[0])!r} was not written by this command: choose another folder")
    record = {"model": one.source, "data": options.prompts, "settings": settings, "environment": environment()}
    write_atomically(path, json.dumps(record, indent=1))


def _partial(folder: Path, one: Contestant) -> Path:
    return folder / f"{one.label}.partial.jsonl"


def _read(path: Path) -> dict[str, dict[str, Any]]:
    """The whole lines of an unfinished file by prompt; a line that a crash cut short is taken off the file."""
    if not path.is_file():
        return {}
    whole = path.read_bytes()
    kept = whole[: whole.rfind(b"\n") + 1]
    if len(kept) < len(whole):
        path.write_bytes(kept)
    return {line["id"]: line for line in map(json.loads, kept.decode("utf-8").split("\n")[:-1])}


def _answer_all(
    folder: Path,
    one: Contestant,
    asked: Sequence[Prompt],
    models: Contestants,
    options: GenerateOptions,
    limit: int,
) -> None:
    final, partial = folder / f"{one.label}.jsonl", _partial(folder, one)
    if final.is_file():
        print(f"{one.label}: {final} is there already", file=sys.stderr)
        return
    done = _read(partial)
    bar = tqdm(total=len(asked), initial=len(done), desc=f"answers ({one.label})", unit="answer")
    with models.active(one), open(partial, "a", encoding="utf-8") as file:
        for batch in _batches(asked, options.batch_size):
            if all(prompt.id in done for prompt in batch):
                continue
            answers = answer_batch(models.model, models.tokenizer, batch, limit, options)
            lines = [_line(prompt, answer, one) for prompt, answer in zip(batch, answers, strict=True)]
            file.write("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
            file.flush()
            os.fsync(file.fileno())
            bar.update(sum(line["id"] not in done for line in lines))
            done |= {line["id"]: line for line in lines}
    bar.close()
    write_atomically(final, "".join(json.dumps(done[p.id], ensure_ascii=False) + "\n" for p in asked))
    partial.unlink()
    cut = sum(not line["ended"] for line in done.values())
    print(f"{one.label}: {len(done)} answers in {final}, {cut} of them cut at {limit} tokens")


def _line(prompt: Prompt, answer: Answer, one: Contestant) -> dict[str, Any]:
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
    """The same batches every time: longest prompts first."""
    order = sorted(asked, key=lambda one: (-len(one.input_ids), one.id))
    for start in range(0, len(order), size):
        yield order[start : start + size]


@torch.no_grad()
def answer_batch(
    model: Any, tokenizer: Any, batch: Sequence[Prompt], limit: int, options: GenerateOptions
) -> list[Answer]:
    """Answers of the model as it is, likeliest tokens or sampled; random numbers depend on the seed and the batch."""
    device = next(model.parameters()).device
    length = max(len(one.input_ids) for one in batch)
    pad = tokenizer.pad_token_id
    ids = torch.tensor([[pad] * (length - len(one.input_ids)) + one.input_ids for one in batch], device=device)
    lengths = torch.tensor([[len(one.input_ids)] for one in batch], device=device)
    mask = (torch.arange(length, device=device) >= length - lengths).long()
    stops = stop_tokens(model, tokenizer)
    sampling: dict[str, Any] = {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}
    if options.temperature:
        sampling = {"do_sample": True, "temperature": options.temperature, "top_p": options.top_p, "top_k": 0}
    seed = int.from_bytes(hashlib.sha256(f"{options.seed} {batch[0].id}".encode()).digest()[:7], "big")
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        out = model.generate(
            input_ids=ids,
            attention_mask=mask,
            max_new_tokens=limit,
            pad_token_id=pad,
            eos_token_id=sorted(stops),
            **sampling,
        )
    return [_answer(row, stops, tokenizer) for row in out[:, length:].tolist()]


def _answer(row: list[int], stops: set[int], tokenizer: Any) -> Answer:
    end = next((place for place, token in enumerate(row) if token in stops), None)
    said = row if end is None else row[:end]
    return Answer(tokenizer.decode(said, skip_special_tokens=True).strip(), len(said), end is not None)


def stop_tokens(model: Any, tokenizer: Any) -> set[int]:
    """The tokens that end an answer: the model's, the tokenizer's, and the one behind a turn in the chat template."""
    config = getattr(model, "generation_config", None)
    own = getattr(config, "eos_token_id", None)
    found = {tokenizer.eos_token_id, *(own if isinstance(own, list) else [own])}
    end = tokenizer(end_of_turn(tokenizer) or "", add_special_tokens=False)["input_ids"]
    if len(end) == 1:
        found.add(end[0])
    return {token for token in found if token is not None}
