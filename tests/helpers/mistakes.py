"""Mistakes of every kind and the line that each ends with: tried by the tests, listed in ``docs/reference/errors.md``.

room = Room(folder)  # makes a tiny model, a run and data
for mistake in MISTAKES:
    print(mistake.what, line_of(room, mistake))
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import io
import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from helpers.judging import write_answers
from helpers.tiny import save_tiny
from uncertune.cli import main

Content = str | bytes | None
"""Of a file; None deletes it."""

TRAIN = (
    "train --model_name_or_path {model} --dataset_name {data} --output_dir {out} --max_steps 2 --use_cpu true "
    "--disable_tqdm true --report_to none"
)
RUN = f"{TRAIN} --use_peft true --save_steps 1 --objective masked_mle"
_TURNS = [{"role": "user", "content": "Say 1"}, {"role": "assistant", "content": "It is 1."}]


@dataclass(frozen=True)
class Mistake:
    """What a user did, and the command that ends with a line."""

    what: str
    command: str
    files: Mapping[str, Content] = field(default_factory=dict)
    """Written before the command runs, by path in the room; ``damaged/`` is a copy of the run, ``stopped/`` a copy that
    has not ended, ``broken/`` a copy of the model."""
    lacking: str | None = None
    """A package that must not be installed for the line to come."""

    @property
    def possible(self) -> bool:
        return self.lacking is None or importlib.util.find_spec(self.lacking) is None


class Room:
    """A folder with a tiny model, a run of it, data and answers."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        save_tiny(folder / "model", marked=True, max_position_embeddings=4096)
        (folder / "data.jsonl").write_text(f"{json.dumps({'messages': _TURNS})}\n" * 4)
        for name in ("one", "two"):
            write_answers(folder / f"{name}.jsonl", {"Hi?": name})
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()) as said:
            assert main(RUN.format(**self.places | {"out": folder / "run"}).split()) == 0, said.getvalue()

    @functools.cached_property
    def places(self) -> dict[str, Path]:
        names = ("model", "run", "out", "damaged", "broken", "stopped", "settings.yaml", "one.jsonl", "two.jsonl")
        return {name.partition(".")[0]: self.folder / name for name in names} | {"data": self.folder / "data.jsonl"}

    def prepare(self, mistake: Mistake) -> list[str]:
        """Write the files of a mistake; its command as words."""
        for name in ("out", "damaged", "broken", "stopped"):
            shutil.rmtree(self.folder / name, ignore_errors=True)
        for name, source in (("damaged", "run"), ("stopped", "run"), ("broken", "model")):
            if any(path.startswith(name) for path in mistake.files):
                shutil.copytree(self.folder / source, self.folder / name)
        if (record := self.folder / "stopped" / "run.json").is_file():
            record.write_text(json.dumps({**json.loads(record.read_text()), "complete": False}))
        for path, content in mistake.files.items():
            if content is None:
                (self.folder / path).unlink()
            else:
                data = content.encode("utf-8", "surrogatepass") if isinstance(content, str) else content
                (self.folder / path).write_bytes(data)
        rows = {"rows": self.folder / next((path for path in mistake.files if path.startswith("rows")), "rows.jsonl")}
        return [word.format(**self.places, **rows).replace("·", " ") for word in mistake.command.split()]


def line_of(room: Room, mistake: Mistake) -> str:
    """The last line of the command, which failed with status 2; paths are those from the room."""
    words = room.prepare(mistake)
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()) as said:
        status = main(words)
    assert status == 2, f"{mistake.what}: status {status}\n{said.getvalue()[-2000:]}"
    line = said.getvalue().splitlines()[-1]
    assert line.startswith("uncertune: error: "), said.getvalue()[-2000:]
    assert said.getvalue().count("uncertune: error: ") == 1, said.getvalue()[-2000:]
    if mistake.command.split()[0] not in ("report", "merge"):
        assert not room.places["out"].exists(), f"{mistake.what}: something is left in output_dir"
    return line.removeprefix("uncertune: error: ").replace(f"{room.folder}/", "")


def _field(value: object, name: str) -> Mistake:
    """A field of ``train`` with a value that it cannot have, in a file."""
    text = yaml.safe_dump({name: value}, default_flow_style=True, width=10**6).strip()[1:-1]
    return Mistake(f"`{text}`", f"{TRAIN} --config {{settings}}", {"settings.yaml": yaml.safe_dump({name: value})})


def _file(what: str, content: str) -> Mistake:
    return Mistake(what, f"{TRAIN} --config {{settings}}", {"settings.yaml": content})


def _flag(flags: str, command: str = TRAIN, **more: str) -> Mistake:
    return Mistake(f"`{flags.replace('·', ' ')}`", f"{command} {flags}", **more)  # type: ignore[arg-type]


def _rows(what: str, *rows: object, ending: str = "jsonl", flags: str = "") -> Mistake:
    """Rows of a data file, as objects or as text."""
    text = "".join(row if isinstance(row, str) else json.dumps(row) + "\n" for row in rows)
    command = TRAIN.replace("{data}", "{rows}")
    return Mistake(what, f"{command} {flags}", {f"rows.{ending}": text})


def _turn(role: str, **turn: object) -> dict[str, object]:
    return {"messages": [{"role": "user", "content": "Hi"}, {"role": role, **turn}]}


def _damaged(command: str, path: str, content: Content, how: str) -> Mistake:
    where = "run" if path.startswith("damaged/") else "model"
    name = command.split()[0]
    return Mistake(f"`{name}`: `{path.split('/', 1)[1]}` of a {where} {how}", command, {path: content})


_REPORT, _MERGE = "report {damaged}", "merge {damaged} --output_dir {out}"
_EVALUATE = "evaluate {damaged} --tasks tokens:{data} --output_dir {out}"
_BROKEN = TRAIN.replace("{model}", "{broken}")
_JUDGE = "compare {one} {two} --output_dir {out} --judge x"
_GOOD = {"input_ids": [1, 2, 3], "labels": [-100, 2, 3]}
_ORACLE = "--objective oracle"
_BOMB = "a: &x0 [1]\n" + "\n".join(f"b{n}: &x{n} [{', '.join([f'*x{n - 1}'] * 9)}]" for n in range(1, 9))

MISTAKES: dict[str, list[Mistake]] = {
    "Values": [
        *(_field(value, "learning_rate") for value in (-1, float("nan"), [1], "fast")),
        *(_field(value, "max_steps") for value in (1e23, 2**64, None)),
        _field(2, "adam_beta1"),
        _field(-1, "dataloader_num_workers"),
        _field(-1, "neftune_noise_alpha"),
        _field(float("nan"), "warmup_steps"),
        _field(float("nan"), "max_grad_norm"),
        _field([1], "model_init_kwargs"),
        _field({"unknown_option": 1}, "model_init_kwargs"),
        _field(True, "lora_target_modules"),
        _field(-0.1, "lora_dropout"),
        _field(0, "lora_alpha"),
        _field({"a": 1}, "gradient_checkpointing_kwargs"),
        _field({"unknown": 1}, "lr_scheduler_kwargs"),
        _field("missing.json", "accelerator_config"),
        _field("missing.json", "deepspeed"),
        _field("nowhere", "optim"),
        _field(-7, "overwrite"),
        _field("a\0b", "seed"),
        _field(0.1, "selection_fracton"),
        _file("`seed:` and an integer of 5000 digits", "seed: " + "9" * 5000),
        _file("`seed: 2024-99-99`, a date that does not exist", "seed: 2024-99-99"),
        _file("a field that is set twice", "seed: 1\nseed: 2\n"),
        _file("nesting 10,000 levels deep", "seed: " + "[" * 10_000),
        _file("an alias bomb", _BOMB),
        _file("half of a surrogate pair", "objective: \udc80"),
        Mistake("a file that is not there", f"{TRAIN} --config missing.yaml"),
        _flag("--samples 1e20", "score {data} --model {model} --output_dir {out}"),
        _flag("--limit -1", "evaluate {model} --tasks tokens:{data} --output_dir {out}"),
        _flag("--lora_modules_to_save nope --use_peft true"),
        _flag("--lora_target_modules nope --use_peft true"),
        _flag("--dataset_train_split nope", TRAIN.replace("{data}", "word_problems")),
        _flag("--dataset_split nope", "score word_problems --model {model} --output_dir {out}"),
        _flag("--tasks tokens:word_problems@nope", "evaluate {model} --output_dir {out}"),
    ],
    "Optional packages": [
        _flag("--use_liger_kernel true", lacking="liger_kernel"),
        _flag("--attn_implementation flash_attention_2", lacking="flash_attn"),
        _flag("--report_to wandb", lacking="wandb"),
        _flag("--load_in_8bit true --use_peft true", lacking="bitsandbytes"),
        _flag("--optim adamw_8bit", lacking="bitsandbytes"),
        _flag("--backend vllm", "evaluate {model} --tasks tokens:{data} --output_dir {out}", lacking="vllm"),
    ],
    "Data": [
        _rows("a part that is an image", _turn("assistant", content=[{"type": "image_url", "image_url": "x"}])),
        _rows("`content: null`", _turn("assistant", content=None)),
        _rows("`content` that is a number", _turn("assistant", content=1)),
        _rows("`tool_calls` without a name", _turn("assistant", content="", tool_calls=[{"function": {}}])),
        _rows("`tools` for a chat template that leaves them out", {"messages": _TURNS, "tools": [{"name": "add"}]}),
        _rows("no assistant turn", _turn("user", content="x")),
        _rows("`chat_template_kwargs` that is text", {"messages": _TURNS, "chat_template_kwargs": "x"}),
        _rows("rows of several kinds", {"messages": _TURNS}, {"prompt": "a", "completion": "b"}),
        _rows("`input_ids` outside the vocabulary", {"input_ids": [1, 99999], "labels": [1, 2]}),
        _rows("negative `input_ids`", {"input_ids": [1, -2], "labels": [1, 2]}),
        _rows("negative `labels` other than −100", {"input_ids": [1, 2], "labels": [1, -5]}),
        _rows("`input_ids: null`", {"input_ids": None, "labels": [1, 2]}),
        _rows("booleans in `input_ids`", {"input_ids": [True, False], "labels": [1, 2]}),
        _rows("fractions in `input_ids`", {"input_ids": [1.5, 2.5], "labels": [1, 2]}),
        _rows("`input_ids` that is a number", {"input_ids": 5, "labels": [1, 2]}),
        _rows("`labels` of another length", {"input_ids": [1, 2, 3], "labels": [1]}),
        _rows("a weight of 10³⁰⁰", {**_GOOD, "token_weight": 1e300}),
        _rows("a negative weight", {**_GOOD, "token_weight": -1}),
        _rows("an oracle that does not sum to one", {**_GOOD, "oracle": [[0.5]] * 3, "oracle_ids": [[1]] * 3},
              flags=_ORACLE),
        _rows("an oracle that repeats ids", {**_GOOD, "oracle": [[0.5, 0.5]] * 3, "oracle_ids": [[1, 1]] * 3},
              flags=_ORACLE),
        _rows("half of a surrogate pair", '{"text": "\\ud800"}\n'),
        _rows("nesting 100,000 levels deep", '{"text": ' + "[" * 100_000 + "\n"),
        _rows("an integer of 5000 digits", '{"input_ids": [' + "9" * 5000 + "]}\n"),
        _rows("a line that is not JSON", '{"text": "a"}\n', "oops\n"),
        _rows("`question: null`", {"question": None, "answer": "1"}),
        _rows("an unclosed quote in CSV", 'prompt,completion\na,"b\nc,d\n', ending="csv"),
        _rows("a file that is not Parquet", "PAR1", ending="parquet"),
        _rows("an empty file"),
        Mistake("a file that is not there", TRAIN.replace("{data}", "missing.jsonl")),
        Mistake("prompts without a question", "generate {model} --prompts {rows} --output_dir {out}",
                {"rows.jsonl": '{"prompt": null}\n'}),
    ],
    "Chat templates": [
        Mistake(f"a template that {what}", f"{TRAIN} --chat_template_path {{settings}}.jinja",
                {"settings.yaml.jinja": content})
        for what, content in (
            ("is not Jinja", "{% for message in messages %}"),
            ("raises an error", "{{ raise_exception('Only system turns are known') }}"),
            ("divides by zero", "{{ 1 / 0 }}"),
            ("names a variable that is not there", "{% generation %}{{ nothing.at.all }}{% endgeneration %}"),
            ("calls what cannot be called", "{{ messages() }}"),
            ("never ends its loop", "{% for n in range(999999999) %}x{% endfor %}"),
        )
    ],
    "Damaged folders": [
        *(_damaged(command, f"damaged/{path}", content, how)
          for command, path in (
              (_REPORT, "config.yaml"), (_REPORT, "run.json"), (_REPORT, "metrics.jsonl"), (_REPORT, "probe.jsonl"),
              (_REPORT, "environment.json"), (_MERGE, "config.yaml"), (_MERGE, "adapter_config.json"),
              (_MERGE, "adapter_model.safetensors"), (_MERGE, "tokenizer.json"), (_EVALUATE, "run.json"),
              (_EVALUATE, "adapter_model.safetensors"), (_EVALUATE, "tokenizer_config.json"),
          )
          for content, how in ((b"\0\xff junk", "is binary"),)),
        *(_damaged(_REPORT, f"damaged/{path}", content, how)
          for path in ("config.yaml", "run.json", "metrics.jsonl")
          for content, how in (("", "is empty"), ("[1]", "has another shape"))),
        *(_damaged(_BROKEN, f"broken/{path}", content, how)
          for path, content, how in (
              ("config.json", "", "is empty"), ("config.json", "[1]", "has another shape"),
              ("config.json", '{"model_type": "nothing"}', "names an unknown type"),
              ("tokenizer.json", "{}", "has another shape"), ("tokenizer.json", b"\xff", "is binary"),
              ("model.safetensors", b"junk", "is junk"), ("model.safetensors", None, "is missing"),
              ("model.safetensors.index.json", '{"weight_map": {"a": "gone.safetensors"}}', "names a missing file"),
          )),
        Mistake("`train`: the weights of every checkpoint of a run that is to be resumed are damaged",
                RUN.replace("{out}", "{stopped}"),
                {f"stopped/checkpoint-{step}/adapter_model.safetensors": b"junk" for step in (1, 2)}),
        Mistake("`train`: the metrics of a run that is to be resumed lost records",
                RUN.replace("{out}", "{stopped}"), {"stopped/metrics.jsonl": ""}),
        Mistake("`train`: the output folder holds a run with other settings",
                RUN.replace("{out}", "{stopped}") + " --seed 7", {"stopped/report.html": ""}),
        Mistake("`merge`: a folder without an adapter", "merge {model} --output_dir {out}"),
        Mistake("`report`: a folder that no command wrote", "report {model}"),
    ],
    "Output folders": [
        Mistake(f"`--output_dir` that is {what}", f"{command} --output_dir {path}")
        for what, path in (
            ("a file", "{data}"), ("a device", "/dev/null"), ("in `/proc`", "/proc/uncertune"),
            ("too long", "x" * 300), ("the model's folder", "{model}"),
        )
        for command in (TRAIN.replace(" --output_dir {out}", ""),)
    ],
    "Judges": [
        *(_flag(f"--judge_url {url}", _JUDGE) for url in ("http://127.0.0.1:x", "http://[::1", "ftp://x", "nowhere")),
        _flag("--judge_timeout inf --judge_url http://127.0.0.1:1/v1", _JUDGE),
        _flag("--judge_key sk-0123456789abcdefghij --judge_url https://x/v1", _JUDGE),
    ],
    "Trust": [
        _field(True, "trust_remote_code"),
        _field(True, "allow_pickle"),
        Mistake("`merge`: `config.yaml` of a run that asks for `trust_remote_code`", "merge --config {settings}",
                {"settings.yaml": "trust_remote_code: true"}),
    ],
}  # fmt: skip
