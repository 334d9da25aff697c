"""Data files as a stranger's program may write them: rows of every form, some damaged, some files damaged as a whole.

path, what = write(folder, random.Random(0), forms=PROMPTS)
"""

from __future__ import annotations

import copy
import csv
import gzip
import io
import json
import os
import random
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

Row = dict[str, Any]


def _turns(*texts: str) -> list[Row]:
    return [{"role": ("user", "assistant")[n % 2], "content": text} for n, text in enumerate(texts)]


_CALL = {"type": "function", "function": {"name": "add", "arguments": {"a": 1}}}
_FORMS: dict[str, Row] = {
    "messages": {"messages": _turns("Say 1", "It is 1.", "And 2?", "It is 2.")},
    "system": {"messages": [{"role": "system", "content": "Be brief."}, *_turns("Say 1", "1")]},
    "parts": {"messages": [{"role": "user", "content": [{"type": "text", "text": "Hi"}]}, *_turns("Hi", "Ho")[1:]]},
    "tools": {
        "messages": [
            {"role": "user", "content": "Add 1"},
            {"role": "assistant", "content": "", "tool_calls": [_CALL]},
            {"role": "tool", "content": "1"},
            {"role": "assistant", "content": "It is 1."},
        ],
        "tools": [{"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}],
    },
    "prompt and completion": {"prompt": "Say 1", "completion": "It is 1."},
    "turns and completion": {"prompt": _turns("Say 1"), "completion": [{"role": "assistant", "content": "1"}]},
    "text": {"text": "A sentence."},
    "ids": {"input_ids": [10, 11, 12, 13], "labels": [-100, -100, 12, 13]},
    "weights": {"messages": _turns("Say 1", "It is 1."), "token_weight": 0.5},
    "alpaca": {"instruction": "Say 1", "input": "", "output": "It is 1."},
    "gsm8k": {"question": "1 + 1?", "answer": "2\n#### 2"},
    "sharegpt": {"conversations": [{"from": "human", "value": "Say 1"}, {"from": "gpt", "value": "1"}]},
    "history": {"instruction": "And 2?", "output": "2", "history": [["Say 1", "1"]], "system": "Be brief."},
    "answers": {"prompt": "Say 1", "answer": "It is 1."},
}
TRAINED = tuple(name for name in _FORMS if name != "answers")
PROMPTS = tuple(name for name in _FORMS if name not in ("ids", "text", "weights"))
ANSWERS = ("answers", "alpaca", "prompt and completion")

_VALUES: list[Any] = [
    *(None, True, 0, -1, 7, 1.5, 1e300, float("nan"), float("inf"), 2**31, 2**63, -(2**63) - 1, 10**400),
    *("", " ", "\n", "x", "\0", "\u202e", "\ud800", "\x1b[31m", "<|im_end|>", "<|im_start|>assistant\n", "x" * 3000),
    *([], [None], [1], [1.5], [-1], [-100], [300], ["a"], [[]], [{}], {}, {"a": 1}, {"role": "user"}, {"text": "x"}),
    *([{"role": "user"}], [{"role": None, "content": "x"}], [{"role": "assistant", "content": None}], [[["a"]]]),
    [{"type": "image_url", "image_url": {"url": "http://x"}}],
]  # fmt: skip
_NAMES = (
    *("messages", "prompt", "completion", "text", "input_ids", "labels", "instruction", "output", "question", "answer"),
    *("conversations", "tools", "system", "history", "token_weight", "advantages", "oracle", "chat_template_kwargs"),
    *("role", "content", "from", "value", "tool_calls", "", "a\0b", "\ud800", "seq_lengths", "assistant_masks"),
)
_RAW: dict[str, bytes] = {
    "an empty file": b"",
    "blank lines": b"\n \n\n",
    "NUL bytes": bytes(64),
    "random bytes": bytes(range(256)) * 3,
    "UTF-16": '{"text": "x"}\n'.encode("utf-16"),
    "a byte order mark": b'\xef\xbb\xbf{"text": "x"}\n',
    "a lone surrogate": b'{"text": "\\ud800"}\n',
    "invalid UTF-8": b'{"text": "\xed\xa0\x80"}\n',
    "deep nesting": b'{"text": ' + b"[" * 100_000 + b"\n",
    "deep closed nesting": b'{"text": ' + b"[" * 3000 + b"]" * 3000 + b"}\n",
    "a number of 5000 digits": b'{"input_ids": [' + b"9" * 5000 + b"]}\n",
    "an array": b'[{"text": "a"}, {"text": "b"}]',
    "an array that is not closed": b'[{"text": "a"}, {"text": "b"}',
    "a value instead of an object": b"1\n2\n",
    "a list instead of an object": b'["a"]\n',
    "an object without columns": b"{}\n{}\n",
    "no JSON": b"hello: [\n",
    "NaN": b'{"text": NaN}\n',
    "the same column twice": b'{"text": "a", "text": 1}\n',
    "an unclosed quote": b'prompt,completion\na,"b\nc,d\n',
    "a row that is too long": b"prompt,completion\na,b,c\n",
    "a row that is too short": b"prompt,completion\na\n",
    "the same header twice": b"prompt,prompt\na,b\n",
    "a header alone": b"prompt,completion\n",
    "half a gzip file": gzip.compress(b'{"text": "x"}\n' * 99)[:40],
    "a pickle": b"\x80\x04\x95\x05\x00\x00\x00\x00\x00\x00\x00K\x01.",
    "half a Parquet file": b"PAR1\x15\x04\x15",
}
_ENDINGS = (*[".jsonl"] * 6, ".json", ".json", ".csv", ".parquet", ".txt", ".jsonl.gz", ".csv.gz", ".dat")


def fresh_seed() -> int:
    """The seed of the environment variable ``UNCERTUNE_FUZZ_SEED``, to repeat what failed, else the time."""
    return int(os.environ.get("UNCERTUNE_FUZZ_SEED", time.time_ns() % 2**32))


def write(folder: Path, draw: random.Random, forms: Sequence[str]) -> tuple[Path, str]:
    """One file in ``folder``, and in words how it was made."""
    if draw.random() < 0.15:
        what = draw.choice(list(_RAW))
        path = folder / f"data{draw.choice(_ENDINGS)}"
        path.write_bytes(_RAW[what])
        return path, f"{what} in {path.name}"
    form = draw.choice(list(forms))
    rows = [copy.deepcopy(_FORMS[form]) for _ in range(draw.choice((1, 2, 2, 2, 3)))]
    for number, row in enumerate(rows):  # prompts that differ
        _replace(row, f"1 and {number}")
    said = [_mutate(rows, draw) for _ in range(draw.choice((0, 0, 1, 1, 2)))]
    path = folder / f"data{draw.choice(_ENDINGS)}"
    content = _encoded(rows, path.name)
    if draw.random() < 0.1:
        cut = draw.randrange(len(content) + 1)
        content = content[:cut] + (b"" if draw.random() < 0.5 else b"\xff" + content[cut + 1 :])
        said.append(f"broken at byte {cut}")
    path.write_bytes(content)
    return path, f"{form} in {path.name}: {'; '.join(said) or 'as it should be'}: {rows!r:.300}"


def _replace(value: Any, text: str) -> None:
    """Put ``text`` for the 1 in every prompt."""
    for key, one in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        if one == "Say 1":
            value[key] = f"Say {text}"
        else:
            _replace(one, text)


def _mutate(rows: list[Row], draw: random.Random) -> str:
    """Change one place in one row; what was done."""
    number = draw.randrange(len(rows))
    kind = draw.choice(("replace", "replace", "replace", "remove", "add", "other"))
    if kind == "other":
        form = draw.choice(list(_FORMS))
        rows[number] = copy.deepcopy(_FORMS[form])
        return f"row {number} is {form}"
    holder, key = draw.choice(list(_places(rows[number])) or [(rows[number], "x")])
    if kind == "remove" and key in (holder if isinstance(holder, dict) else range(len(holder))):
        del holder[key]
        return f"row {number} lacks {key!r}"
    if kind == "add":
        holder, key = rows[number], draw.choice(_NAMES)
    holder[key] = copy.deepcopy(draw.choice(_VALUES))
    return f"row {number} has {holder[key]!r:.40} at {key!r}"


def _places(value: Any) -> list[tuple[Any, Any]]:
    """Every place within a row, as its container and key."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [place for key, one in items for place in [(value, key), *_places(one)]]


def _encoded(rows: list[Row], name: str) -> bytes:
    """The rows as the file's name says, as far as its format can hold them."""
    if name.endswith(".parquet"):
        try:
            sink = io.BytesIO()
            pq.write_table(pa.Table.from_pylist(rows), sink)
            return sink.getvalue()
        except (pa.ArrowException, OverflowError, UnicodeEncodeError, TypeError, ValueError):
            return b"PAR1"
    if ".csv" in name:
        text = io.StringIO()
        names = list(dict.fromkeys(column for row in rows for column in row))
        table = csv.DictWriter(text, names)
        table.writeheader()
        table.writerows(rows)
        content = text.getvalue().encode("utf-8", "surrogatepass")
    elif name.endswith(".json"):
        content = json.dumps(rows).encode()
    elif name.endswith(".txt"):
        content = "\n".join(str(row) for row in rows).encode("utf-8", "surrogatepass")
    else:
        content = "".join(json.dumps(row) + "\n" for row in rows).encode()
    return gzip.compress(content) if name.endswith(".gz") else content
