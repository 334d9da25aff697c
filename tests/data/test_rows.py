"""Token ids and labels are TRL's, on every kind of row; and what TRL does not prepare is right or one line."""

import pytest
from trl import SFTConfig, SFTTrainer

from helpers.conversations import CALLED, TOOL_TEMPLATE, WEATHER, chat
from helpers.tiny import tiny_model, tiny_tokenizer
from uncertune.data.reading import in_memory, readable
from uncertune.data.rows import Labelling, tokenise
from uncertune.data.templates import assistant_marks

TURNS = chat(("user", "Hi"), ("assistant", "Hello."), ("user", "And?"), ("assistant", " Bye. "))
LIGHT = {"type": "function", "function": {"name": "light", "arguments": {"on": True, "room": 3}}}
DARK = [
    {"role": "user", "content": "Dark!"},
    {"role": "assistant", "content": "", "tool_calls": [LIGHT]},
    {"role": "tool", "name": "light", "content": "ok"},
    {"role": "assistant", "content": "Done."},
]

ROWS = {
    "messages": [{"messages": TURNS}, {"messages": [{"role": "system", "content": "S"}, *TURNS[:2]]}],
    "prompt and completion": [{"prompt": "Once ", "completion": "upon a time"}, {"prompt": "", "completion": "x "}],
    "completion ending in eos": [{"prompt": "a", "completion": "b<|im_end|>"}, {"prompt": "a", "completion": "c"}],
    "conversational completion": [
        {"prompt": TURNS[:3], "completion": TURNS[3:]},
        {"prompt": TURNS[:1], "completion": TURNS[1:]},
    ],
    "text": [{"text": "One."}, {"text": "Two.<|im_end|>"}],
    "ids": [{"input_ids": [5, 6, 7], "labels": [-100, 6, 7]}, {"input_ids": [8, 9], "labels": [8, 9]}],
    "ids alone": [{"input_ids": [5, 6, 7]}, {"input_ids": [8, 9]}],
    "ids and masks": [{"input_ids": [5, 6, 7], "assistant_masks": [0, 1, 0], "completion_mask": [0, 1, 1]}],
    "tools": [{"messages": CALLED, "tools": [WEATHER]}, {"messages": DARK, "tools": [WEATHER]}],
    "tools of completions": [{"prompt": CALLED[:3], "completion": CALLED[3:], "tools": [WEATHER]}],
    "template options": [{"messages": TURNS, "chat_template_kwargs": {"documents": []}}],
}


def prepared_by_trl(rows, folder, tokenizer, **fields):
    args = SFTConfig(str(folder), bf16=False, use_cpu=True, report_to="none", max_length=None, **fields)
    trainer = SFTTrainer(tiny_model("llama", 259), args, train_dataset=rows, processing_class=tokenizer)
    data = trainer.train_dataset
    return [(row["input_ids"], row["labels"]) for row in data]


def tokenizer_for(name):
    tokenizer = tiny_tokenizer(marked=True)
    if "tools" in name:
        tokenizer.chat_template = TOOL_TEMPLATE
    return tokenizer


@pytest.mark.parametrize("assistant_only", [False, True])
@pytest.mark.parametrize("completion_only", [None, False, True])
@pytest.mark.parametrize("name", ROWS)
def test_ids_and_labels_are_those_of_trl(tmp_path, name, assistant_only, completion_only):
    """The number that is right is what ``SFTTrainer`` of TRL 1.16 prepares from the same rows."""
    first = ROWS[name][0]
    if assistant_only and not any(isinstance(first.get(key), list) for key in ("messages", "completion")):
        pytest.skip("TRL has assistant_only_loss for conversations alone")
    tokenizer = tokenizer_for(name)
    fields = {"assistant_only_loss": assistant_only, "completion_only_loss": completion_only}
    rows = in_memory(ROWS[name], "rows")
    expected = prepared_by_trl(rows, tmp_path, tokenizer, **fields)
    default = "prompt" in first and "completion" in first
    how = Labelling(
        assistant_marks(tokenizer) if assistant_only else None, default if completion_only is None else completion_only
    )
    found = [tokenise(row, number, tokenizer, how) for number, row in enumerate(readable(rows, "rows"))]
    assert [(row.input_ids, row.labels) for row in found] == expected
