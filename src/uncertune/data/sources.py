"""Sources of training rows, all through ``load``: built-in names, files, folders and the hub."""

import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from uncertune.data import files, formats, synthetic
from uncertune.data.prompts import Prompt, read_prompt
from uncertune.data.reading import Reading, converted_rows, detected, readable
from uncertune.errors import UserError
from uncertune.runs.notes import note

if TYPE_CHECKING:
    from datasets import Dataset, IterableDataset


@dataclass(frozen=True)
class BuiltIn:
    """A data set known by name: its file for each split in a folder of local copies, and its place on the hub."""

    format: str
    files: dict[str, str] = field(default_factory=dict)
    hub_id: str | None = None
    hub_config: str | None = None
    hub_file: str | None = None


BUILTIN = {
    "alpaca": BuiltIn("alpaca", {"train": "alpaca_52k.jsonl.gz"}, "tatsu-lab/alpaca"),
    "gsm8k": BuiltIn(
        "gsm8k", {"train": "gsm8k_train.jsonl.gz", "test": "gsm8k_test.jsonl.gz"}, "openai/gsm8k", hub_config="main"
    ),
    "sharegpt": BuiltIn(
        "sharegpt",
        {"train": "sharegpt_sample.jsonl.gz"},
        "anon8231489123/ShareGPT_Vicuna_unfiltered",
        hub_file="ShareGPT_V3_unfiltered_cleaned_split.json",
    ),
    "word_problems": BuiltIn("trl"),
    "alpaca_eval": BuiltIn(
        "alpaca", {"train": "alpaca_eval.jsonl.gz"}, "tatsu-lab/alpaca_eval", hub_file="alpaca_eval.json"
    ),
    "ifeval": BuiltIn("trl", {"train": "ifeval.jsonl.gz"}, "google/IFEval"),
    "ifeval_gpt4": BuiltIn(  # GPT-4's answers to IFEval's prompts
        "responses",
        {"train": "ifeval_gpt4_responses.jsonl.gz"},
        "json",
        hub_file="https://raw.githubusercontent.com/google-research/google-research/master/"
        "instruction_following_eval/data/input_response_data_gpt4_20231107_145030.jsonl",
    ),
    "wikitext2": BuiltIn(
        "wikitext",
        {"test": "wikitext2_raw_test.txt.gz"},
        "Salesforce/wikitext",
        hub_config="wikitext-2-raw-v1",
    ),
    "mmlu_dev": BuiltIn("mmlu", {"dev": "mmlu_dev.jsonl.gz"}, "cais/mmlu", hub_config="all"),
}
FORMATS = ("auto", "trl", *formats.CONVERTERS)
WORD_PROBLEM_ROWS = 1000


def masks_prompts(name: str) -> bool:
    """Whether a data set is built-in and consists of conversations, so that only the assistant's turns have loss."""
    return name in BUILTIN and BUILTIN[name].format != "wikitext"


def is_file(name: str) -> bool:
    """Whether a data set's name is that of a file, which has no splits."""
    path = Path(name).expanduser()
    return name not in BUILTIN and (path.is_file() or (files.extension(path) is not None and not path.is_dir()))


def column_names(given: Mapping[str, Any] | str | None) -> dict[str, str]:
    """``dataset_columns``, a mapping from known names to those in the data, or its JSON. Raises ``UserError``."""
    try:
        found = json.loads(given) if isinstance(given, str) else given or {}
    except ValueError:
        found = None
    if not isinstance(found, Mapping) or not all(isinstance(one, str) for pair in found.items() for one in pair):
        example = '{"instruction": "query", "output": "response"}'
        raise UserError(f"dataset_columns must be a mapping of known to given names, like {example}; got {given!r}")
    return dict(found)


def own_columns(name: str, columns: Mapping[str, str] | None) -> Mapping[str, str] | None:
    """``dataset_columns`` for one of several data sets: None for a built-in one, whose columns are known."""
    return None if name in BUILTIN else columns


def evaluation_split(name: str) -> str:
    """The split of a data set to measure on: ``test``, or the first split of a built-in data set without it."""
    splits = synthetic.SPLITS if name == "word_problems" else tuple(BUILTIN[name].files) if name in BUILTIN else ()
    return next(iter(splits), "test") if "test" not in splits else "test"


def load_prompts(
    name: str,
    *,
    config: str | None = None,
    split: str | None = None,
    data_dir: str | os.PathLike[str] | None = None,
    columns: Mapping[str, str] | None = None,
    max_samples: int | None = None,
    seed: int = 0,
) -> list[Prompt]:
    """Prompts in the order of the data: every conversation without its last answer, and its tools.

    Repeated prompts are left out, and their number is printed. ``name``, ``config``, ``data_dir`` and ``columns`` as in
    ``load``; ``split`` defaults to ``evaluation_split(name)``. Rows need no answer. Raises ``UserError`` as ``load``
    does.
    """
    split = split or evaluation_split(name)
    _check_arguments(name, split, "auto", max_samples)
    where = f"dataset {name!r}"
    source = _renamed(_open(name, config, split, data_dir, max_samples, False, seed), columns, where)
    out: dict[str, Prompt] = {}
    seen = 0
    for index, row in enumerate(source):
        try:
            prompt = read_prompt(row, index)
        except UserError as error:
            raise UserError(f"{where}: {error}") from error
        seen += 1
        out.setdefault(prompt.id, prompt)
        if len(out) == max_samples:
            break
    if not out:
        raise UserError(f"{where}: it has no rows")
    if len(out) < seen:
        note(f"{where}: left out {seen - len(out)} of {seen} prompts that repeat an earlier one")
    return list(out.values())


def load(
    name: str,
    *,
    config: str | None = None,
    split: str = "train",
    data_dir: str | os.PathLike[str] | None = None,
    format: str = "auto",
    text_field: str | None = None,
    columns: Mapping[str, str] | None = None,
    max_samples: int | None = None,
    streaming: bool = False,
    seed: int = 0,
) -> "Dataset | IterableDataset":
    """Rows in a form that TRL can train on (``formats.convert``), with side columns.

    ``name``: a built-in name (``BUILTIN``), a data file (``files.EXTENSIONS``), a folder, or a hub id; the last two use
    ``datasets.load_dataset``. A built-in name is read from ``data_dir`` or the folder in the environment variable
    ``UNCERTUNE_DATA``, if that has its file, otherwise from the hub.
    ``config``: the hub's configuration; for ``word_problems`` the level, 1 to 3 (default: all three).
    ``format``: ``auto`` (by the columns), or one of ``FORMATS``.
    ``text_field``: a column of plain text to train on; if the data has it, it wins over other columns.
    ``columns``: a mapping from known column names to those in the data.
    ``max_samples``: the number of rows after conversion, from the first; later rows are not read.
    ``seed``: for generated data only; nothing is shuffled here.

    Rows with nothing to learn from and unused columns are left out; which, and how many, is printed to stderr, for a
    stream at its end. Generated sets have 1000 rows by default.

    Raises ``UserError`` for a value out of range, data that is missing, unreadable or empty, a row that cannot be used,
    and a hub that does not answer.
    """
    _check_arguments(name, split, format, max_samples)
    where = f"dataset {name!r}"
    source = _renamed(_open(name, config, split, data_dir, max_samples, streaming, seed), columns, where)
    known = BUILTIN.get(name)
    if known and format == "auto":
        format = known.format
    if not streaming:
        return readable(source, where, format, text_field, max_samples, named=known is None)

    from datasets import IterableDataset

    reading = Reading(detected(source, where, format, text_field), text_field, max_samples, where, known is None)
    return IterableDataset.from_generator(converted_rows, gen_kwargs={"source": source, "reading": reading})


def _check_arguments(name: str, split: str, format: str, max_samples: int | None) -> None:
    if not name:
        raise UserError(f"dataset: give a name ({', '.join(BUILTIN)}), a file, a folder or a hub id")
    if not split:
        raise UserError(f"split: {split!r} is not a name; use train or test")
    if format not in FORMATS:
        raise UserError(f"format: {format!r} is not known; choose {', '.join(FORMATS)}")
    if max_samples is not None and max_samples < 1:
        raise UserError(f"max_samples: {max_samples} must be 1 or more (leave it out for all rows)")


def _renamed(
    source: "Iterable[formats.Record]", columns: Mapping[str, str] | None, where: str
) -> "Iterable[formats.Record]":
    """The source with columns renamed to the known names. Raises ``UserError`` for a missing column."""
    if not columns:
        return source
    first: formats.Record = next(iter(source), {})
    for known, name in columns.items():
        if name not in first:
            raise UserError(
                f"dataset_columns: {where} has no column {name!r} (for {known!r}); it has {', '.join(sorted(first))}"
            )
    return _RenamedRows(source, tuple(columns.items()))


@dataclass(frozen=True)
class _RenamedRows:
    source: "Iterable[formats.Record]"
    columns: tuple[tuple[str, str], ...]

    def __iter__(self) -> "Iterator[formats.Record]":
        taken = {name for _, name in self.columns}
        for row in self.source:
            rest = {name: value for name, value in row.items() if name not in taken}
            yield {**rest, **{known: row[name] for known, name in self.columns if name in row}}


@dataclass(frozen=True)
class _FileRows:
    path: Path

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return files.read_rows(self.path)


@dataclass(frozen=True)
class _WordProblemRows:
    seed: int
    level: int | None
    split: str
    count: int

    def __iter__(self) -> Iterator[dict[str, Any]]:
        problems = synthetic.word_problems(self.seed, self.level, split=self.split)
        return ({"messages": one.messages(), "answer": one.answer} for one in islice(problems, self.count))


def _open(
    name: str,
    config: str | None,
    split: str,
    data_dir: str | os.PathLike[str] | None,
    max_samples: int | None,
    streaming: bool,
    seed: int,
) -> "Iterable[formats.Record]":
    """The raw rows: mappings, in an iterable that can be read several times."""
    folder = _folder("data_dir", data_dir)
    if name == "word_problems":
        return _open_word_problems(config, split, max_samples, seed)
    if name in BUILTIN:
        folder = folder or _folder("UNCERTUNE_DATA", os.environ.get("UNCERTUNE_DATA"))
        return _open_builtin(name, config, split, folder, streaming)
    path = Path(name).expanduser()
    if is_file(name):
        if config is not None or "[" in split:
            field, value = ("split", split) if config is None else ("config", config)
            raise UserError(f"{field}: {value!r} cannot be used with the file {name!r}; leave it out (see max_samples)")
        return _FileRows(path)
    if not path.is_dir() and not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name):
        raise UserError(f"dataset {name!r}: no such file or folder, and not a hub id (owner/name)")
    try:
        return _load_dataset(name if not path.is_dir() else str(path), config, None, split, streaming)
    except Exception as error:  # whatever datasets, the hub or the data's own builder raises
        hint = "" if path.is_dir() else f"; built-in names are {', '.join(BUILTIN)}"
        raise UserError(f"dataset {name!r}: cannot be loaded ({_reason(error)}){hint}") from error


def _open_word_problems(config: str | None, split: str, max_samples: int | None, seed: int) -> _WordProblemRows:
    if config is not None and str(config) not in ("1", "2", "3"):
        raise UserError(f"config: {config!r} is not a level of word_problems; use 1, 2 or 3, or leave it out for all")
    if split not in synthetic.SPLITS:
        raise UserError(f"split: {split!r} is not one of word_problems; use {' or '.join(synthetic.SPLITS)}")
    return _WordProblemRows(seed, int(config) if config else None, split, max_samples or WORD_PROBLEM_ROWS)


def _open_builtin(
    name: str, config: str | None, split: str, folder: Path | None, streaming: bool
) -> "Iterable[formats.Record]":
    known = BUILTIN[name]
    file_name = known.files.get(split.partition("[")[0])
    if file_name is None:
        raise UserError(f"split: {split!r} is not one of {name}; use {' or '.join(known.files)}")
    own_config = config in (None, known.hub_config)
    if folder is not None and own_config and (folder / file_name).is_file():
        if "[" in split:
            raise UserError(
                f"split: {split!r} cannot be cut from a local file; use {split.partition('[')[0]!r} and max_samples"
            )
        return _FileRows(folder / file_name)
    try:
        assert known.hub_id is not None
        return _load_dataset(known.hub_id, config or known.hub_config, known.hub_file, split, streaming)
    except Exception as error:  # whatever datasets or the hub raises
        fix = (
            ""
            if not own_config
            else (
                f"; put {file_name} in a folder and name the folder with --data_dir or UNCERTUNE_DATA"
                + (f" (not in {str(folder)!r})" if folder else "")
            )
        )
        raise UserError(
            f"dataset {name!r}: {known.hub_id} is not available on the hub ({_reason(error)}){fix}"
        ) from error


def _load_dataset(path: str, config: str | None, file: str | None, split: str, streaming: bool) -> Any:
    from datasets import load_dataset

    return load_dataset(path, config, data_files=file, split=split, streaming=streaming)


def _folder(field: str, value: str | os.PathLike[str] | None) -> Path | None:
    if not value:
        return None
    folder = Path(value).expanduser()
    if not folder.is_dir():
        raise UserError(f"{field}: {str(value)!r} is not a folder")
    return folder


def _reason(error: BaseException) -> str:
    return files.first_line(error.__cause__ or error)
