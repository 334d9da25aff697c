"""``uncertune generate``: the answers, going on after an interruption, mistakes."""

import json

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from helpers.tiny import save_tiny
from uncertune.cli import main
from uncertune.data.sources import load, load_prompts
from uncertune.evaluation import generate as answers
from uncertune.evaluation.measures import generate as greedy


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return str(save_tiny(tmp_path_factory.mktemp("model") / "m", max_position_embeddings=2048))


COMMAND = ["--prompts", "word_problems", "--limit", "7", "--max_new_tokens", "10", "--batch_size", "3"]


def read(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_answers_are_greedy_and_in_the_order_of_the_prompts(model, tmp_path):
    assert main(["generate", model, *COMMAND, "--output_dir", str(tmp_path)]) == 0
    found = read(tmp_path / "m.jsonl")
    asked = load_prompts("word_problems", max_samples=7)
    prompts = [one.messages for one in asked]
    assert [one["messages"] for one in found] == prompts
    assert [one["id"] for one in found] == [one.id for one in asked]
    tokenizer, lm = AutoTokenizer.from_pretrained(model), AutoModelForCausalLM.from_pretrained(model)
    assert [one["answer"] for one in found] == greedy(lm, tokenizer, prompts, max_new_tokens=10, batch_size=3)
    assert all(one["tokens"] <= 10 and one["ended"] == (one["tokens"] < 10) for one in found)


def test_sampled_answers_are_the_same_after_an_interruption(model, tmp_path, monkeypatch, capsys):
    sampled = [*COMMAND, "--temperature", "0.9", "--seed", "3"]
    assert main(["generate", model, *sampled, "--output_dir", str(tmp_path / "whole")]) == 0
    one, done = answers.answer_batch, []

    def stops(*args):
        if len(done) == 2:
            raise KeyboardInterrupt
        done.append(1)
        return one(*args)

    monkeypatch.setattr(answers, "answer_batch", stops)
    torch.manual_seed(99)
    cut = ["generate", model, *sampled, "--output_dir", str(tmp_path / "cut")]
    assert main(cut) == 130
    partial = tmp_path / "cut" / "m.partial.jsonl"
    assert len(read(partial)) == 6
    partial.write_text("\n".join(partial.read_text().splitlines()[:5]) + '\n{"id": "12')  # and a crash within a batch
    monkeypatch.setattr(answers, "answer_batch", lambda *args: done.append(1) or one(*args))
    assert main(cut) == 0
    assert len(done) == 4, "one whole batch was kept"
    assert read(tmp_path / "cut" / "m.jsonl") == read(tmp_path / "whole" / "m.jsonl")
    assert not partial.exists()
    assert main([*cut, "--temperature", "0.5"]) == 2
    assert "with temperature 0.9, here it is 0.5" in capsys.readouterr().err


def greedy_answer(model, turns, tokens):
    tokenizer, lm = AutoTokenizer.from_pretrained(model), AutoModelForCausalLM.from_pretrained(model)
    return greedy(lm, tokenizer, [turns], max_new_tokens=tokens, batch_size=1)[0]


def test_a_question_is_answered_on_the_terminal(model, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    expected = greedy_answer(model, [{"role": "user", "content": "What is 2 + 2?"}], 10)
    for words in (["What is 2 + 2?"], ["--prompt", "What is 2 + 2?"]):
        capsys.readouterr()
        assert main(["generate", model, *words, "--max_new_tokens", "10"]) == 0
        assert capsys.readouterr().out.startswith(expected)
    assert not list(tmp_path.iterdir())
    assert main(["generate", model]) == 2
    assert "output_dir is missing" in capsys.readouterr().err


def test_a_chat_goes_on_from_turn_to_turn(model, capsys, monkeypatch):
    lines = iter(["Hi", "", "Why?", "/new", "Hi"])
    monkeypatch.setattr("builtins.input", lambda _: next(lines, None) or "/exit")
    lines = iter(["Hi", "Why?", "/new", "Hi"])
    assert main(["chat", model, "--max_new_tokens", "6"]) == 0
    said = capsys.readouterr().out
    first = greedy_answer(model, turns := [{"role": "user", "content": "Hi"}], 6)
    turns += [{"role": "assistant", "content": first}, {"role": "user", "content": "Why?"}]
    second = greedy_answer(model, turns, 6)
    cut = "\n[cut at 6 tokens]\n"
    assert said.replace(cut, "\n") == f"{first}\n{second}\n{first}\n"


MISTAKES = {
    "prompts": (["--prompts", "nowhere.jsonl"], "nowhere.jsonl"),
    "top_p": (["--top_p", "0.5"], "temperature 0 does not sample"),
    "room": (["--max_new_tokens", "2048"], "do not fit"),
    "folder": (["--output_dir", "{model}/config.json/x"], "cannot be made"),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_a_mistake_is_one_line(case, model, tmp_path, capsys):
    words, says = MISTAKES[case]
    words = [word.format(model=model) for word in words]
    assert main(["generate", model, *COMMAND, "--output_dir", str(tmp_path / "out"), *words]) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if "uncertune: error:" in line]
    assert len(lines) == 1
    assert says in lines[0]
    assert not list((tmp_path / "out").glob("*.jsonl"))


def test_columns_of_other_names_are_asked_and_measured_as_under_their_known_names(model, tmp_path):
    rows = [(f"Add {n} to itself.", "Be brief.", str(2 * n)) for n in range(3)]
    for name, keys in (("known", ("instruction", "input", "output")), ("other", ("query", "context", "response"))):
        lines = [json.dumps(dict(zip(keys, row, strict=True))) + "\n" for row in rows]
        (tmp_path / f"{name}.jsonl").write_text("".join(lines))
    columns = ["--dataset_columns", json.dumps({"instruction": "query", "input": "context", "output": "response"})]

    def measured(name, *more):
        data, out = str(tmp_path / f"{name}.jsonl"), tmp_path / name
        asked = ["--prompts", data, "--max_new_tokens", "6"]
        assert main(["generate", model, *asked, *more, "--output_dir", str(out / "answers")]) == 0
        tasks = ["--tasks", f"tokens:{data}" + (",tokens:word_problems" if more else ""), "--limit", "3"]
        assert main(["evaluate", model, *tasks, *more, "--output_dir", str(out / "measures")]) == 0
        (result,) = (out / "measures" / "m").glob(f"*{name}*.json")
        return read(out / "answers" / "m.jsonl"), json.loads(result.read_text())["metrics"]

    answered, metrics = measured("known")
    assert measured("other", *columns) == (answered, metrics)
    assert [one["messages"][-1]["content"] for one in answered] == [f"{asked}\n\n{more}" for asked, more, _ in rows]
    assert metrics["loss"] > 0


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["generate", "--prompts", "DATA"], "dataset_columns: dataset 'DATA' has no column 'ask' (for 'instruction')"),
        (["evaluate", "--tasks", "tokens:DATA"], "dataset_columns: dataset 'DATA' has no column 'ask'"),
        (["evaluate", "--tasks", "gsm8k,tokens:wikitext2"], "dataset_columns has no effect"),
        (["compare", "MODEL", "--prompts", "alpaca_eval"], "dataset_columns has no effect"),
        (["generate", "--prompt", "Who?"], "dataset_columns has no effect on a question"),
        (["generate", "--prompts", "word_problems"], "dataset_columns: dataset 'word_problems' has no column 'ask'"),
    ],
)
def test_columns_that_are_not_there_are_one_line(words, said, model, tmp_path, capsys):
    data = tmp_path / "rows.jsonl"
    data.write_text('{"query": "Who?", "response": "Me."}\n')
    words = [word.replace("DATA", str(data)).replace("MODEL", model) for word in words]
    out = ["--output_dir", str(tmp_path / "out"), "--dataset_columns", '{"instruction": "ask"}']
    assert main([words[0], model, *words[1:], *out]) == 2
    assert said.replace("DATA", str(data)) in capsys.readouterr().err.strip().splitlines()[-1]


def test_answers_are_training_rows(model, tmp_path, capsys):
    assert main(["generate", model, *COMMAND, "--output_dir", str(tmp_path)]) == 0
    lines = read(tmp_path / "m.jsonl")
    lines[0] |= {"answer": "Nine.", "ended": True}
    lines[1] |= {"answer": "Ten and", "ended": False}
    other = {"messages": [{"role": "user", "content": "How?"}, {"role": "assistant", "content": "So."}]}
    mixed = tmp_path / "mixed.jsonl"
    mixed.write_text("".join(json.dumps(one) + "\n" for one in [other, *lines]))
    capsys.readouterr()
    rows = [one["messages"] for one in load(str(mixed))]
    assert rows[0] == other["messages"]
    assert rows[1] == [*lines[0]["messages"], {"role": "assistant", "content": "Nine."}]
    cut = sum(not one["ended"] for one in lines)
    blank = sum(one["ended"] and not one["answer"] for one in lines)
    assert len(rows) == 8 - cut - blank
    said = capsys.readouterr().err
    assert f"{cut} of 8 generated answers that were cut at max_new_tokens" in said
    assert "column" not in said
