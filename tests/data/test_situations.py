"""What people bring: the data of each case, and the tokens that carry loss or the one line that is right."""

import json

import pytest

from helpers.conversations import CALL, CALLED, TOOL_TEMPLATE, WEATHER, chat
from helpers.tiny import save_tiny, tiny_tokenizer
from uncertune.data.chat import encode
from uncertune.data.rows import labelling_of, read_rows, tokenise
from uncertune.data.sources import load, load_prompts
from uncertune.data.templates import assistant_marks, training_template
from uncertune.errors import UserError

QUESTION = chat(("user", "Hi"))
SCHEMA = json.dumps([{"name": "weather", "description": "of a city", "parameters": {}}])
SHAREGPT_CALL = [
    {"from": "human", "value": "Weather?"},
    {"from": "function_call", "value": json.dumps({"name": "weather", "arguments": {"city": "Bern"}})},
    {"from": "observation", "value": "12"},
    {"from": "gpt", "value": "12 degrees."},
]
HEAD = "<|im_start|>system\nYou are a helpful AI assistant.<|im_end|>\n"
USER, MODEL, END = "<|im_start|>user\n", "<|im_start|>assistant\n", "<|im_end|>"


def write(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def tokenizer_with(template=None):
    tokenizer = tiny_tokenizer(marked=True)
    tokenizer.chat_template = template or tokenizer.chat_template
    return tokenizer


def trained(rows, tokenizer, **fields):
    """Text and loss-carrying text of each row."""
    how = labelling_of(rows[0], tokenizer, **fields)
    found = [tokenise(row, number, tokenizer, how) for number, row in enumerate(rows)]
    said = [[token for token in row.labels if token != -100] for row in found]
    return [(tokenizer.decode(row.input_ids), tokenizer.decode(ids)) for row, ids in zip(found, said, strict=True)]


# ---- what is trained on


PARTS = [{"role": "user", "content": [{"type": "text", "text": "A"}, {"type": "text", "text": "B"}]}]
LEARNT = {
    "system beside alpaca": (
        {"instruction": "Hi", "output": "Yo", "system": "Be brief."},
        f"<|im_start|>system\nBe brief.{END}\n{USER}Hi{END}\n{MODEL}Yo{END}\n",
        f"Yo{END}",
    ),
    "history beside alpaca": (
        {"instruction": "And?", "output": "Bye", "history": [["Hi", "Yo"]]},
        f"{HEAD}{USER}Hi{END}\n{MODEL}Yo{END}\n{USER}And?{END}\n{MODEL}Bye{END}\n",
        f"Yo{END}Bye{END}",
    ),
    "system beside messages": (
        {"messages": [*QUESTION, *chat(("assistant", "Yo"))], "system": "S"},
        f"<|im_start|>system\nS{END}\n{USER}Hi{END}\n{MODEL}Yo{END}\n",
        f"Yo{END}",
    ),
    "system beside conversations": (
        {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Yo"}], "system": "S"},
        f"<|im_start|>system\nS{END}\n{USER}Hi{END}\n{MODEL}Yo{END}\n",
        f"Yo{END}",
    ),
    "conversations of role and content": (
        {"conversations": [*QUESTION, *chat(("assistant", "Yo"))]},
        f"{HEAD}{USER}Hi{END}\n{MODEL}Yo{END}\n",
        f"Yo{END}",
    ),
    "UltraChat's prompt beside messages": (
        {"prompt": "Hi", "prompt_id": "7", "messages": [*QUESTION, *chat(("assistant", "Yo"))]},
        f"{HEAD}{USER}Hi{END}\n{MODEL}Yo{END}\n",
        f"Yo{END}",
    ),
    "parts of text": (
        {"messages": [*PARTS, {"role": "assistant", "content": ["Y", {"text": "o"}]}]},
        f"{HEAD}{USER}AB{END}\n{MODEL}Yo{END}\n",
        f"Yo{END}",
    ),
    "a blank turn in the middle": (
        {"messages": [*QUESTION, *chat(("assistant", " \n"), ("user", "And?"), ("assistant", "Bye"))]},
        f"{HEAD}{USER}And?{END}\n{MODEL}Bye{END}\n",
        f"Bye{END}",
    ),
    "a blank turn of ShareGPT": (
        {
            "conversations": [
                {"from": "human", "value": "Hi"},
                {"from": "gpt", "value": "Yo"},
                {"from": "human", "value": "?"},
                {"from": "gpt", "value": ""},
            ]
        },
        f"{HEAD}{USER}Hi{END}\n{MODEL}Yo{END}\n",
        f"Yo{END}",
    ),
    "null where a table has no value": (
        {"messages": [{"role": "user", "content": "Hi", "name": None, "tool_calls": None}, *chat(("assistant", "Yo"))]},
        f"{HEAD}{USER}Hi{END}\n{MODEL}Yo{END}\n",
        f"Yo{END}",
    ),
}


@pytest.mark.parametrize("case", LEARNT)
def test_what_is_trained_on(tmp_path, case):
    row, text, said = LEARNT[case]
    assert trained(load(write(tmp_path / "a.jsonl", row)), tokenizer_with()) == [(text, said)]


def test_columns_of_other_names(tmp_path):
    path = write(tmp_path / "a.jsonl", {"query": "Hi", "response": "Yo", "extra": 1})
    rows = load(path, columns={"instruction": "query", "output": "response"})
    assert trained(rows, tokenizer_with())[0][1] == f"Yo{END}"
    with pytest.raises(UserError, match=r"has no column 'ask'.*it has extra, query, response"):
        load(path, columns={"instruction": "ask"})


def test_tools_are_rendered_and_calls_trained_on(tmp_path):
    """OpenAI's messages and LLaMA-Factory's roles; arguments keep their own keys, whatever other rows call."""
    other = {"type": "function", "function": {"name": "light", "arguments": {"on": True}}}
    lit = [*QUESTION, {"role": "assistant", "content": None, "tool_calls": [other]}]
    rows = load(write(tmp_path / "a.jsonl", {"messages": CALLED, "tools": [WEATHER]}, {"messages": lit}))
    (text, said), (_, lit_said) = trained(rows, tokenizer_with(TOOL_TEMPLATE))
    assert json.dumps([WEATHER]) in text
    assert "<|im_start|>tool\n12 degrees<|im_end|>" in text
    assert said == f"{json.dumps([CALL])}{END}It is 12 degrees.{END}"
    assert lit_said == f"{json.dumps([other])}{END}"
    rows = load(write(tmp_path / "b.jsonl", {"conversations": SHAREGPT_CALL, "tools": SCHEMA}))
    ((text, said),) = trained(rows, tokenizer_with(TOOL_TEMPLATE))
    assert "of a city" in text
    assert said == f"{json.dumps([CALL])}{END}12 degrees.{END}"


def test_a_template_without_marks_is_marked_by_rendering(tmp_path):
    template = (
        "{% for m in messages %}<{{ m['role'] }}> {{ m['content'] | trim }} <|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<assistant>{% endif %}"
    )
    tokenizer = tokenizer_with(template)
    with pytest.raises(UserError):
        training_template(tokenizer)
    assert assistant_marks(tokenizer).by_rendering
    turns = [*QUESTION, *chat(("assistant", " Yo "), ("user", "And?"), ("assistant", "Bye"))]
    ((text, said),) = trained(load(write(tmp_path / "a.jsonl", {"messages": turns})), tokenizer)
    assert (
        text == "<user> Hi <|im_end|>\n<assistant> Yo <|im_end|>\n<user> And? <|im_end|>\n<assistant> Bye <|im_end|>\n"
    )
    assert said == " Yo <|im_end|> Bye <|im_end|>"


# ---- what is left out


def test_nothing_is_left_out_in_silence(tmp_path, capsys):
    blank = {"instruction": "a", "output": "", "id": 3, "tags": ["x"]}
    load(write(tmp_path / "a.jsonl", blank, {"instruction": "a", "output": "b", "id": 4, "tags": []}))
    said = capsys.readouterr().err
    for part in ("1 of 2 rows in which the assistant says nothing", "column 'id' (2 rows)", "column 'tags' (1 rows)"):
        assert part in said
    load(write(tmp_path / "b.jsonl", LEARNT["a blank turn in the middle"][0]))
    assert "1 blank assistant turns with what they answer" in capsys.readouterr().err
    load(write(tmp_path / "c.jsonl", LEARNT["UltraChat's prompt beside messages"][0]))
    said = capsys.readouterr().err
    assert "column 'prompt_id'" in said
    assert "column 'prompt'" not in said, "it repeats the first question"


# ---- one line


ANSWER = {"messages": [*QUESTION, *chat(("assistant", "Yo"))]}
DEEP = "[" * 100_000 + "]" * 100_000
LINES = {
    "an image": (
        [ANSWER, {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}],
        "row 1: turn 0 (user) has a part of type 'image_url'",
    ),
    "a number as content": (
        [{"messages": [{"role": "user", "content": 3}]}],
        "row 0: turn 0 (user): 'content' is int, not text",
    ),
    "null as content": ([{"messages": [{"role": "user", "content": None}]}], "row 0: turn 0 (user) has no 'content'"),
    "mixed kinds": (
        [ANSWER, {"prompt": "a", "completion": "b"}],
        "row 1: it holds prompt and completion, the rows before it messages",
    ),
    "gsm8k behind messages": ([ANSWER, {"question": "a", "answer": "b"}], "row 1: no column 'text'"),
    "a null question": (
        [{"question": "a", "answer": "b"}, {"question": None, "answer": "b"}],
        "row 1: 'question' is nothing",
    ),
    "half of a surrogate pair": (
        [ANSWER, {"messages": chat(("user", "a\ud800"), ("assistant", "b"))}],
        "row 1: turn 0 (user) holds half of a surrogate pair (U+D800) at character 1",
    ),
    "half of one in a prompt": ([{"prompt": "\udc00", "completion": "b"}], "row 0: 'prompt' holds half"),
    "two system prompts": (
        [{"messages": chat(("system", "a"), ("user", "b"), ("assistant", "c")), "system": "d"}],
        "row 0: the column 'system' and the conversation's own",
    ),
    "a call without a name": (
        [{"messages": [*QUESTION, {"role": "assistant", "content": "", "tool_calls": [{}]}]}],
        "row 0: turn 1 (assistant): 'tool_calls' must be",
    ),
    "a call that is not JSON": (
        [{"conversations": [{"from": "function_call", "value": "weather()"}]}],
        "row 0: turn 0 (function_call) is not JSON",
    ),
    "tools that are not JSON": ([{**ANSWER, "tools": "weather"}], "row 0: 'tools' is not JSON"),
    "history of three": (
        [{"instruction": "a", "output": "b", "history": [["a", "b", "c"]]}],
        "row 0: 'history' must be a list of pairs",
    ),
    "columns of mixed types": (
        [{**ANSWER, "token_weight": 1.0}, {**ANSWER, "token_weight": "x"}],
        "row 1, column 'token_weight'",
    ),
    "a number beyond 64 bits": ([{"input_ids": [10**30]}], "row 0, column 'input_ids'"),
    "ids as a number": ([{"input_ids": 7}], "row 0: 'input_ids' is int"),
    "ids as null": ([{"input_ids": [1]}, {"input_ids": None}], "row 1: 'input_ids' is nothing"),
}


@pytest.mark.parametrize("case", LINES)
def test_a_row_that_cannot_be_used_is_one_line(tmp_path, case):
    rows, line = LINES[case]
    with pytest.raises(UserError) as caught:
        load(write(tmp_path / "a.jsonl", *rows))
    assert line in str(caught.value)
    assert "\n" not in str(caught.value)


FILES = {
    "an unclosed quote": ("a.csv", 'question,answer\none,1\n"two,2\nthree,3\n', "row 1 is not CSV"),
    "a quote that swallows a row": ("a.csv", 'question,answer\n"one,1\ntwo,2\n"three",3\n', "row 0 is not CSV"),
    "a null by a short row": ("a.csv", "answer,question\none\n", "row 0: 'question' is nothing"),
    "nesting without end": ("a.jsonl", '{"text": ' + DEEP + "}\n", "line 1 is nested too deep"),
    "nesting in an array": ("a.json", DEEP, "the array is nested too deep"),
    "an integer of 5000 digits": ("a.jsonl", '{"text": ' + "9" * 5000 + "}\n", "line 1 holds a number too long"),
}


@pytest.mark.parametrize("case", FILES)
def test_a_file_that_cannot_be_read_is_one_line(tmp_path, case):
    name, content, line = FILES[case]
    (tmp_path / name).write_text(content)
    with pytest.raises(UserError) as caught:
        load(str(tmp_path / name))
    assert line in str(caught.value)
    assert "\n" not in str(caught.value)


IDS = {
    "outside the vocabulary": (
        {"input_ids": [1, 259]},
        "'input_ids' holds 259, which is not in the model's vocabulary",
    ),
    "negative": ({"input_ids": [1, -1]}, "'input_ids' holds -1"),
    "a label below -100": ({"input_ids": [1, 2], "labels": [-100, -101]}, "'labels' holds -101"),
    "another negative label": ({"input_ids": [1, 2], "labels": [-100, -1]}, "'labels' holds -1; of negative numbers"),
    "a label outside": ({"input_ids": [1, 2], "labels": [1, 300]}, "'labels' holds 300"),
    "null": ({"input_ids": [1, None]}, "'input_ids' holds None at place 1"),
    "true": ({"input_ids": [True, 2]}, "'input_ids' holds True at place 0"),
    "a fraction": ({"input_ids": [1, 2.0]}, "'input_ids' holds 2.0 at place 1"),
    "too few labels": ({"input_ids": [1, 2], "labels": [1]}, "'labels' are 1 long, 'input_ids' 2"),
}


@pytest.mark.parametrize("case", IDS)
def test_ids_are_checked(case):
    row, line = IDS[case]
    tokenizer = tokenizer_with()
    with pytest.raises(UserError, match="data: row 4") as caught:
        tokenise(row, 4, tokenizer, labelling_of(row, tokenizer, vocabulary=259), "data")
    assert line in str(caught.value)


NO_SYSTEM = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
REFUSED = {
    "a system turn": (
        NO_SYSTEM + tiny_tokenizer(marked=True).chat_template,
        {"messages": chat(("system", "s"), ("user", "a"), ("assistant", "b"))},
        "System role not supported",
    ),
    "calls that vanish": (
        None,
        {"messages": [*QUESTION, {"role": "assistant", "content": "", "tool_calls": [CALL]}]},
        "leaves out 'tool_calls'",
    ),
    "tools that vanish": (None, {**ANSWER, "tools": [WEATHER]}, "leaves out the descriptions in 'tools'"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_template_that_refuses_or_drops_is_one_line_everywhere(tmp_path, case):
    """Training, score and evaluate tokenise by the first function, generate by the second."""
    template, row, line = REFUSED[case]
    tokenizer = tokenizer_with(template)
    path = write(tmp_path / "a.jsonl", ANSWER, row)
    with pytest.raises(UserError, match="row 1: ") as caught:
        read_rows(path, tokenizer, limit=None, max_length=500)
    assert line in str(caught.value)
    turns = [*row["messages"], *QUESTION]
    with pytest.raises(UserError, match="prompt 3: ") as caught:
        encode(tokenizer, turns, "prompt 3", tools=row.get("tools"), add_generation_prompt=True)
    assert line in str(caught.value)


# ---- prompts


def test_prompts_that_differ_in_tools_or_calls_are_different(tmp_path):
    asked = CALLED[:3]
    other = [asked[0], {**asked[1], "tool_calls": [{**CALL, "id": "x"}]}, asked[2]]
    named = [asked[0], asked[1], {**asked[2], "name": "forecast"}]
    rows = [{"messages": asked}, {"messages": other}, {"messages": named}, {"messages": asked, "tools": [WEATHER]}]
    prompts = load_prompts(write(tmp_path / "a.jsonl", *rows, rows[0]))
    assert len({prompt.id for prompt in prompts}) == len(prompts) == 4
    assert prompts[3].tools == [WEATHER]
    assert prompts[0].messages[1]["tool_calls"] == [CALL]


def test_prompts_have_system_and_history(tmp_path):
    row = {"instruction": "And?", "output": "", "history": [["Hi", "Yo"]], "system": "S"}
    (prompt,) = load_prompts(write(tmp_path / "a.jsonl", row))
    turns = chat(("system", "S"), ("user", "Hi"), ("assistant", "Yo"), ("user", "And?"))
    assert prompt.messages == turns


# ---- evaluation data


def trains_on(tmp_path, **fields):
    from uncertune.training.arguments import arguments_of
    from uncertune.training.jobs import job_of

    model = save_tiny(tmp_path / "model")
    given = {"model_name_or_path": str(model), "output_dir": str(tmp_path / "run"), "eval_strategy": "steps", **fields}
    return job_of(arguments_of(given))


def test_a_test_split_of_a_file_is_kept_apart(tmp_path, capsys):
    path = write(tmp_path / "a.jsonl", *({"prompt": f"{n}?", "completion": f"{n}!"} for n in range(40)))
    job = trains_on(tmp_path, dataset_name=path, test_split_size=0.1)
    assert (len(job.train_dataset), len(job.eval_dataset)) == (36, 4)
    assert not set(job.train_dataset["prompt"]) & set(job.eval_dataset["prompt"])
    again = trains_on(tmp_path, dataset_name=path, test_split_size=0.1, max_eval_samples=2)
    assert list(again.eval_dataset["prompt"]) == list(job.eval_dataset["prompt"])[:2]
    with pytest.raises(UserError, match=r"has no test split.*set test_split_size: 0\.1"):
        trains_on(tmp_path, dataset_name=path)
    with pytest.raises(UserError, match=r"test_split_size"):
        trains_on(tmp_path, dataset_name=path, test_split_size=1.5)


def test_evaluation_rows_that_are_training_rows_are_counted(capsys):
    from uncertune.data.reading import in_memory
    from uncertune.training.dataset import report_shared

    rows = [{"prompt": f"{n}?", "completion": f"{n}!"} for n in range(6)]
    report_shared(in_memory(rows[:4], "a"), {"seen": in_memory(rows[2:], "b"), "new": in_memory(rows[4:], "c")})
    said = capsys.readouterr().err
    assert "seen data: 2 of 4 rows are also training rows" in said
    assert "new data" not in said
