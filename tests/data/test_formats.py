import time

import pytest

from uncertune.data.formats import SIDE_COLUMNS, convert, detect_format
from uncertune.errors import UserError

GOOD = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]


def user_error(function, *arguments, names=()):
    with pytest.raises(UserError) as caught:
        function(*arguments)
    message = str(caught.value)
    assert "\n" not in message
    for name in names:
        assert name in message
    return message


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"messages": GOOD}, "trl"),
        ({"messages": GOOD, "answer": 3, "question": "q"}, "trl"),
        ({"prompt": "a", "completion": "b"}, "trl"),
        ({"text": "a"}, "trl"),
        ({"input_ids": [1]}, "trl"),
        ({"conversations": GOOD}, "trl"),
        ({"conversations": [{"from": "human", "value": "a"}], "id": "x"}, "sharegpt"),
        ({"conversations": []}, "sharegpt"),
        ({"instruction": "a", "input": "", "output": "b"}, "alpaca"),
        ({"instruction": "a", "output": "b"}, "alpaca"),
        ({"instruction": "a", "input": "", "output": "b", "text": "both"}, "alpaca"),
        ({"question": "a", "answer": "b"}, "gsm8k"),
        ({"prompt": "a", "response": "b"}, "responses"),
    ],
)
def test_detect_format(row, expected):
    assert detect_format(list(row), row) == expected


def test_detect_format_lists_what_was_found_and_what_is_known():
    user_error(detect_format, ["reply", "ask"], {}, names=("ask, reply", "alpaca", "gsm8k", "sharegpt", "messages"))
    user_error(detect_format, [], {}, names=("(none)",))


def test_alpaca_joins_instruction_and_input_by_a_blank_line():
    row = {"instruction": "Add.", "input": "1 and 2", "output": "3"}
    assert convert(row, "alpaca") == {
        "messages": [{"role": "user", "content": "Add.\n\n1 and 2"}, {"role": "assistant", "content": "3"}]
    }


@pytest.mark.parametrize("blank", ["", "  \n", None])
def test_alpaca_without_input_is_the_instruction_alone(blank):
    row = {"instruction": "Sing.", "input": blank, "output": "La"}
    assert convert(row, "alpaca")["messages"][0]["content"] == "Sing."


@pytest.mark.parametrize("blank", ["", " \n", None])
def test_rows_with_a_blank_answer_are_left_to_the_caller(blank):
    assert convert({"instruction": "a", "input": "", "output": blank}, "alpaca") is None
    assert convert({"question": "a", "answer": blank}, "gsm8k") is None
    turns = [{"from": "human", "value": "a"}, {"from": "gpt", "value": blank or ""}]
    assert convert({"conversations": turns}, "sharegpt") is None
    assert convert({"conversations": []}, "sharegpt") is None
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": blank or ""}]
    assert convert({"messages": turns}, "trl") is None
    assert convert({"prompt": "a", "completion": blank}, "trl") is None
    assert convert({"prompt": turns[:1], "completion": turns[1:]}, "trl") is None
    assert convert({"text": blank or ""}, "trl") is None


def test_a_response_answers_its_prompt():
    messages = convert({"prompt": "Hi?", "response": "Yes."}, "responses")["messages"]
    assert [(turn["role"], turn["content"]) for turn in messages] == [("user", "Hi?"), ("assistant", "Yes.")]


def test_gsm8k_answer_is_verbatim():
    answer = "She sold 48/2 = <<48/2=24>>24.\n#### 24"
    assert convert({"question": "q", "answer": answer}, "gsm8k")["messages"][1]["content"] == answer


def test_sharegpt_keeps_every_turn_and_names_the_roles():
    turns = [("system", "s"), ("human", "a"), ("gpt", "b"), ("user", "c"), ("Assistant", "d"), ("human", "e")]
    row = {"id": "x", "conversations": [{"from": who, "value": said} for who, said in turns]}
    converted = convert(row, "sharegpt")
    assert list(converted) == ["messages"]
    assert [(m["role"], m["content"]) for m in converted["messages"]] == [
        ("system", "s"),
        ("user", "a"),
        ("assistant", "b"),
        ("user", "c"),
        ("assistant", "d"),
        ("user", "e"),
    ]


def test_side_columns_stay_and_all_others_go():
    side = {name: [0.5] for name in SIDE_COLUMNS}
    row = {"instruction": "a", "input": "", "output": "b", "text": "t", "id": 1, **side}
    converted = convert(row, "alpaca")
    assert converted == {"messages": converted["messages"], **side}
    assert "answer" not in convert({"question": "a", "answer": "b", "token_weight": [1.0]}, "gsm8k")


@pytest.mark.parametrize(
    ("row", "format", "names"),
    [
        ({"instruction": "a", "output": 4}, "alpaca", ("row 7", "'output'", "int")),
        ({"instruction": "a"}, "alpaca", ("row 7", "'output'", "instruction")),
        ({"question": ["a"], "answer": "b"}, "gsm8k", ("row 7", "'question'", "list")),
        ({"conversations": "hello"}, "sharegpt", ("row 7", "'conversations'", "str")),
        ({"id": 1}, "sharegpt", ("row 7", "'conversations'")),
        ({"conversations": [{"value": "a"}]}, "sharegpt", ("row 7", "turn 0", "'from'")),
        ({"conversations": [{"from": "wizard", "value": "a"}]}, "sharegpt", ("row 7", "turn 0", "'wizard'", "human")),
        ({"conversations": [{"from": "gpt", "value": None}]}, "sharegpt", ("row 7", "turn 0", "'value'")),
        ({"a": 1}, "vicuna", ("'vicuna'", "alpaca", "sharegpt")),
    ],
)
def test_mistakes_in_known_formats(row, format, names):
    user_error(convert, row, format, 7, names=names)


@pytest.mark.parametrize(
    ("row", "names"),
    [
        ({"messages": []}, ("'messages'", "empty")),
        ({"messages": "hello"}, ("'messages'", "str")),
        ({"messages": None}, ("'messages'", "nothing")),
        ({"messages": ["hello"]}, ("turn 0", "str")),
        ({"messages": [{"content": "a"}]}, ("turn 0", "'role'")),
        ({"messages": [*GOOD, {"role": "user"}]}, ("turn 2", "user", "'content'")),
        ({"messages": [{"role": "assistant", "content": None}]}, ("turn 0", "'content'")),
        ({"messages": [{"role": "assistant", "content": 4}]}, ("turn 0", "'content'", "int")),
        ({"prompt": "a", "completion": GOOD[1:]}, ("'prompt'", "str", "list of turns")),
        ({"prompt": GOOD[:1], "completion": "b"}, ("'prompt'", "list", "not text")),
        ({"input_ids": 5}, ("'input_ids'", "int")),
        ({"messages": GOOD[:1]}, ("no assistant turn",)),
        ({"conversations": GOOD[:1]}, ("no assistant turn",)),
        ({"prompt": "a", "completion": 5}, ("'completion'", "int")),
        ({"prompt": GOOD[:1], "completion": []}, ("'completion'", "empty")),
        ({"prompt": None, "completion": "b"}, ("'prompt'",)),
        ({"completion": "b"}, ("'prompt'",)),
        ({"text": 3}, ("'text'", "int")),
    ],
)
def test_rows_trl_could_not_learn_from(row, names):
    user_error(convert, row, "trl", 12, names=("row 12", *names))


def test_rows_trl_can_learn_from():
    call = [{"type": "function", "function": {"name": "f", "arguments": {}}}]
    for row in (
        {"messages": GOOD},
        {"messages": [GOOD[0], {"role": "assistant", "content": None, "tool_calls": call}]},
        {"conversations": GOOD},
        {"prompt": "", "completion": "b"},
        {"prompt": GOOD[:1], "completion": GOOD[1:]},
        {"text": "a"},
        {"input_ids": [1, 2]},
    ):
        assert convert(row, "trl") is not None


def test_checking_alpacas_number_of_rows_takes_seconds():
    start = time.perf_counter()
    for index in range(52_002):
        convert({"messages": GOOD}, "trl", index)
    assert time.perf_counter() - start < 5
