import csv
import gzip
import json
import subprocess
import sys

import pytest

from uncertune.data.sources import BUILTIN, evaluation_split, load, load_prompts, masks_prompts
from uncertune.data.synthetic import check_answer, split_of
from uncertune.errors import UserError

ALPACA = [{"instruction": f"Say {n}.", "input": "", "output": f"{n}"} for n in range(5)]


def refused(*names, **arguments):
    with pytest.raises(UserError) as caught:
        list(load(arguments.pop("name"), **arguments))
    message = str(caught.value)
    assert "\n" not in message
    for name in names:
        assert name in message, message
    return message


def write(path, rows):
    opener = gzip.open if path.name.endswith(".gz") else open
    with opener(path, "wt", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
    return str(path)


# --- built-in names -----------------------------------------------------------------------------------------------


def test_all_of_alpaca_converts_and_the_blank_ones_are_counted(data_dir, capsys):
    rows = load("alpaca", data_dir=data_dir)
    assert rows.column_names == ["messages"]
    assert len(rows) == 52_002 - 28
    assert "left out 28 of 52002 rows" in capsys.readouterr().err
    assert rows[0]["messages"][0] == {"role": "user", "content": "Give three tips for staying healthy."}
    with_input = [m for m in rows[:2000]["messages"] if "\n\n" in m[0]["content"]]
    assert len(with_input) > 500
    assert all([turn["role"] for turn in m] == ["user", "assistant"] for m in rows[:2000]["messages"])


def test_gsm8k(data_dir):
    train, test = (load("gsm8k", split=split, data_dir=data_dir) for split in ("train", "test"))
    assert (len(train), len(test)) == (7473, 1319)
    assert all("\n#### " in messages[1]["content"] for messages in test["messages"])


def test_sharegpt_is_multi_turn(data_dir):
    rows = load("sharegpt", data_dir=data_dir)
    assert len(rows) == 5000
    lengths = [len(messages) for messages in rows["messages"]]
    assert sum(lengths) == 34_175
    assert sum(length >= 4 for length in lengths) == 3400


def test_the_folder_can_come_from_the_environment(data_dir, monkeypatch):
    monkeypatch.setenv("UNCERTUNE_DATA", str(data_dir))
    assert len(load("gsm8k", max_samples=3)) == 3


def test_a_file_that_the_folder_lacks_is_looked_for_on_the_hub(some_files, no_hub):
    assert len(load("gsm8k", split="test", data_dir=some_files, max_samples=2)) == 2
    refused("'gsm8k'", "gsm8k_train.jsonl.gz", "openai/gsm8k", str(some_files), name="gsm8k", data_dir=some_files)


@pytest.mark.parametrize("name", ["alpaca", "gsm8k", "sharegpt"])
def test_without_folder_and_hub_one_line_says_what_to_do(name, no_hub):
    known = BUILTIN[name]
    refused(repr(name), known.files["train"], known.hub_id, "--data_dir", "UNCERTUNE_DATA", name=name)


def test_another_configuration_comes_from_the_hub_only(data_dir, no_hub):
    message = refused("'gsm8k'", "openai/gsm8k", name="gsm8k", config="socratic", data_dir=data_dir)
    assert "UNCERTUNE_DATA" not in message


def test_streaming_gives_the_same_rows(data_dir, capsys):
    stream = load("alpaca", data_dir=data_dir, max_samples=1500, streaming=True)
    assert list(stream) == list(stream) == list(load("alpaca", data_dir=data_dir, max_samples=1500))


def test_word_problems():
    rows = load("word_problems")
    assert len(rows) == 1000
    assert set(rows.column_names) == {"messages", "answer"}
    for row in rows:
        question, solution = (turn["content"] for turn in row["messages"])
        assert check_answer(solution, row["answer"])
        assert split_of(question) == "train"
    assert len(load("word_problems", max_samples=1200)) == 1200
    again = load("word_problems")
    assert rows[:] == again[:]
    assert rows._fingerprint == again._fingerprint, "what was tokenised once is found again"
    assert rows[:20] != load("word_problems", seed=1)[:20]
    test = load("word_problems", split="test", max_samples=30, config="1")
    assert all(turns[1]["content"].count("=") == 1 for turns in test["messages"])
    assert list(load("word_problems", max_samples=4, streaming=True)) == list(rows.select(range(4)))


def test_masks_prompts():
    assert all(masks_prompts(name) for name in ("alpaca", "gsm8k", "sharegpt", "word_problems"))
    assert not masks_prompts("my.jsonl")


@pytest.fixture
def hub(monkeypatch):
    """A hub that holds what the test puts there; remembers how it was asked."""
    from uncertune.data import sources

    asked = []

    def answer(*arguments):
        from datasets import Dataset

        asked.append(arguments)
        data = Dataset.from_list(answer.rows)
        return data.to_iterable_dataset() if arguments[-1] else data

    answer.asked = asked
    monkeypatch.delenv("UNCERTUNE_DATA", raising=False)
    monkeypatch.setattr(sources, "_load_dataset", answer)
    return answer


@pytest.mark.parametrize("streaming", [False, True])
def test_alpaca_of_the_hub_gives_the_rows_of_the_local_file(hub, data_dir, streaming):
    with gzip.open(data_dir / "alpaca_52k.jsonl.gz", "rt", encoding="utf-8") as lines:
        first = [json.loads(line) for line, _ in zip(lines, range(300), strict=False)]
    hub.rows = [{**row, "text": f"Below is an instruction. {row['output']}"} for row in first]
    rows = load("alpaca", streaming=streaming)
    assert list(rows) == list(load("alpaca", data_dir=data_dir, max_samples=299))  # one is blank
    assert list(load("tatsu-lab/alpaca", streaming=streaming)) == list(rows)
    assert hub.asked[0] == ("tatsu-lab/alpaca", None, None, "train", streaming)


def test_what_the_hub_is_asked(hub):
    hub.rows = [{"question": "q", "answer": "a"}]
    load("gsm8k", split="test[:5]")
    load("gsm8k", config="socratic")
    load("some/thing", config="x", split="validation")
    hub.rows = [{"id": "x", "conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]}]
    load("sharegpt")
    assert hub.asked == [
        ("openai/gsm8k", "main", None, "test[:5]", False),
        ("openai/gsm8k", "socratic", None, "train", False),
        ("some/thing", "x", None, "validation", False),
        (
            "anon8231489123/ShareGPT_Vicuna_unfiltered",
            None,
            "ShareGPT_V3_unfiltered_cleaned_split.json",
            "train",
            False,
        ),
    ]


# --- files, folders, the hub --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "file_name", ["a.jsonl", "a.jsonl.gz", "a.json", "array.json", "array.json.gz", "a.csv", "a.parquet"]
)
@pytest.mark.parametrize("streaming", [False, True])
def test_files(tmp_path, file_name, streaming):
    path = tmp_path / file_name
    if "array" in file_name:
        opener = gzip.open if file_name.endswith("gz") else open
        with opener(path, "wt") as file:
            file.write("\n " + json.dumps(ALPACA, indent=1))
    elif file_name.endswith("csv"):
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, ALPACA[0])
            writer.writeheader()
            writer.writerows([*ALPACA[:-1], {**ALPACA[-1], "output": "x" * 200_000}])
    elif file_name.endswith("parquet"):
        import pyarrow

        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ALPACA), path)
    else:
        write(path, ALPACA)
    rows = list(load(str(path), streaming=streaming))
    assert len(rows) == 5
    assert rows[2]["messages"] == [
        {"role": "user", "content": "Say 2."},
        {"role": "assistant", "content": "2"},
    ]
    assert list(load(str(path), streaming=streaming, max_samples=2)) == rows[:2]


def test_rows_trl_reads_are_left_as_they_are(tmp_path):
    rows = [
        {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}], "oracle": [[0.5, 0.5]]},
        {"messages": [{"role": "user", "content": "c"}, {"role": "assistant", "content": "d"}], "oracle": [[1.0, 0.0]]},
    ]
    assert load(write(tmp_path / "a.jsonl", rows)).to_list() == rows
    pairs = [{"prompt": "a", "completion": "2020-01-01"}, {"prompt": "b", "completion": "2020-01-02"}]
    assert load(write(tmp_path / "b.jsonl", pairs)).to_list() == pairs


def test_a_column_that_some_rows_lack_is_null_there(tmp_path):
    rows = [{"prompt": "a", "completion": "b"}, {"prompt": "a", "completion": "b", "token_weight": [1.0]}]
    assert load(write(tmp_path / "a.jsonl", rows))["token_weight"][:] == [None, [1.0]]


def test_the_format_can_be_named(tmp_path):
    rows = [{"question": "q", "answer": "a", "text": "t"}]
    path = write(tmp_path / "a.jsonl", rows)
    assert load(path, format="trl").to_list() == [{"text": "t", "answer": "a"}]
    assert load(path, format="gsm8k").column_names == ["messages"]
    refused("row 0", "'instruction'", "answer, question", name=path, format="alpaca")


@pytest.mark.parametrize("streaming", [False, True])
def test_a_folder(tmp_path, streaming, own_cache):
    folder = tmp_path / "mine"
    folder.mkdir()
    write(folder / "train.jsonl", [*ALPACA, {"instruction": "a", "input": "", "output": " "}])
    write(folder / "test.jsonl", ALPACA[:2])
    assert len(list(load(str(folder), streaming=streaming))) == 5
    assert len(list(load(str(folder), streaming=streaming, split="test"))) == 2
    refused(str(folder), "dev", name=str(folder), split="dev")


def test_a_folder_of_trl_rows_is_checked(tmp_path, own_cache):
    folder = tmp_path / "mine"
    folder.mkdir()
    row = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}
    write(folder / "train.jsonl", [row, {"messages": row["messages"][:1]}, row])
    refused(str(folder), "row 1", "no assistant turn", name=str(folder))
    assert load(str(folder), max_samples=1).to_list() == [row]


def test_left_out_rows_are_told(tmp_path, capsys):
    path = write(tmp_path / "a.jsonl", [{"instruction": "a", "output": ""}, *ALPACA])
    assert len(load(path)) == 5
    assert "left out 1 of 6 rows" in capsys.readouterr().err
    assert len(list(load(path, streaming=True))) == 5
    assert "left out 1 of 6 rows" in capsys.readouterr().err
    refused(path, "no row is left", name=write(tmp_path / "a.jsonl", [{"instruction": "a", "output": ""}]))


# --- mistakes -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        ({"name": ""}, ("dataset", "alpaca", "word_problems")),
        ({"name": "word_problems", "max_samples": 0}, ("max_samples", "0")),
        ({"name": "word_problems", "max_samples": -3}, ("max_samples", "-3")),
        ({"name": "word_problems", "format": "xml"}, ("format", "'xml'", "sharegpt")),
        ({"name": "word_problems", "split": "dev"}, ("split", "'dev'", "train or test")),
        ({"name": "word_problems", "split": ""}, ("split",)),
        ({"name": "word_problems", "config": "4"}, ("config", "'4'", "1, 2 or 3")),
        ({"name": "alpaca", "split": "test"}, ("split", "'test'", "alpaca", "train")),
        ({"name": "alpaca", "data_dir": "/no/such/folder"}, ("data_dir", "'/no/such/folder'")),
        ({"name": "nowhere.jsonl"}, ("'nowhere.jsonl'", "no such file")),
        ({"name": "no/such/folder"}, ("'no/such/folder'", "no such file or folder")),
        ({"name": "alpacca"}, ("'alpacca'", "alpaca, gsm8k")),
        ({"name": "some/thing"}, ("'some/thing'",)),
    ],
)
def test_mistakes(arguments, names, no_hub):
    refused(*names, **arguments)


def test_the_environment_names_no_folder(monkeypatch):
    monkeypatch.setenv("UNCERTUNE_DATA", "/no/such/folder")
    refused("UNCERTUNE_DATA", "'/no/such/folder'", name="alpaca")


GOOD = b'{"question": "q", "answer": "a"}\n'


@pytest.mark.parametrize(
    ("file_name", "content", "names"),
    [
        ("a.jsonl", b"", ("no rows",)),
        ("a.jsonl", b"\n\n", ("no rows",)),
        ("a.json", b"[]", ("no rows",)),
        ("a.csv", b"question,answer\n", ("no rows",)),
        ("a.jsonl", GOOD + b'{"question": "q", \n', ("line 2", "not JSON")),
        ("a.json", b'[{"question": "q"},\n oops]', ("line 2", "not JSON")),
        ("a.jsonl", GOOD + b"[1, 2]\n", ("line 2", "list")),
        ("a.json", b"[3]", ("row 0", "int")),
        ("a.jsonl", b"\xff\xfe\x00", ("cannot be read",)),
        ("a.jsonl.gz", GOOD, ("cannot be read",)),
        ("a.jsonl.gz", gzip.compress(GOOD * 1000)[:-20], ("cannot be read",)),
        ("a.parquet", GOOD, ("cannot be read",)),
        ("a.csv", b"question,answer\nq,a,b\n", ("row 0", "more values")),
        ("a.doc", b"hello", ("unknown file extension", ".jsonl")),
        ("a.jsonl", b'{"ask": "q", "reply": "a"}\n', ("ask, reply", "alpaca")),
        ("a.jsonl", GOOD + b'{"question": "q", "answer": 5}\n', ("row 1", "'answer'")),
        (
            "a.jsonl",
            b'{"text": "q", "answer": 1}\n{"text": "q", "answer": 2}\n{"text": "q", "answer": "x"}\n',
            ("do not agree", "row 2", "'answer'"),
        ),
        ("a.jsonl", b'{"text": "q", "token_weight": 1%s}\n' % (b"0" * 20), ("row 0", "'token_weight'")),
    ],
)
def test_files_that_cannot_be_used(tmp_path, file_name, content, names):
    path = tmp_path / file_name
    path.write_bytes(content)
    refused(str(path), *names, name=str(path))


def test_a_stream_names_the_row_at_fault(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(GOOD + b'{"question": "q", "answer": 5}\n')
    refused(str(path), "row 1", "'answer'", name=str(path), streaming=True)


def test_a_folder_with_a_broken_file(tmp_path, own_cache):
    (tmp_path / "train.jsonl").write_text('{"question": ')
    refused(str(tmp_path), name=str(tmp_path))
    empty = tmp_path / "empty"
    empty.mkdir()
    refused(str(empty), name=str(empty))


@pytest.mark.parametrize("arguments", [{"config": "main"}, {"split": "train[:3]"}])
def test_a_file_has_no_configurations_or_slices(tmp_path, arguments):
    path = write(tmp_path / "a.jsonl", ALPACA)
    (field, value), *_ = arguments.items()
    refused(field, repr(value), path, name=path, **arguments)


def test_a_local_copy_is_not_sliced(data_dir):
    refused("split", "'test[:3]'", name="gsm8k", split="test[:3]", data_dir=data_dir)


def test_importing_the_package_is_cheap():
    code = (
        "import sys, uncertune.data.sources, uncertune.data.templates, uncertune.data.general; "
        "print([name for name in ('torch', 'datasets', 'transformers', 'trl', 'pyarrow') if name in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


# --- data to measure on ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "split", "count"), [("wikitext2", "test", 2185), ("mmlu_dev", "dev", 285)])
def test_sets_to_measure_on(name, split, count, data_dir):
    assert evaluation_split(name) == split
    assert len(load(name, split=split, data_dir=data_dir)) == count
    assert masks_prompts(name) == (name == "mmlu_dev")


def test_prompts_of_sets_without_answers(data_dir):
    assert len(load_prompts("alpaca_eval", data_dir=data_dir)) == 805
    assert len(load_prompts("ifeval", data_dir=data_dir)) == 541
    assert len(load("ifeval_gpt4", data_dir=data_dir)) == 541
    refused("'ifeval'", "'prompt' without 'completion'", name="ifeval", data_dir=data_dir)


def test_prompts_of_conversations_end_before_the_last_answer(tmp_path, capsys):
    turns = [{"role": role, "content": role[0]} for role in ("user", "assistant", "user", "assistant")]
    rows = [{"messages": turns}, {"messages": turns[:3]}, {"messages": turns[:1]}]
    assert [one.messages for one in load_prompts(write(tmp_path / "a.jsonl", rows))] == [turns[:3], turns[:1]]
    assert "left out 1 of 3 prompts" in capsys.readouterr().err
    (tmp_path / "a.txt").write_text("one\n\ntwo\n")
    assert load(str(tmp_path / "a.txt"))["text"] == ["one", "two"]
    with pytest.raises(UserError, match="hold no messages"):
        load_prompts(str(tmp_path / "a.txt"))
