import gzip
import json
import re
from pathlib import Path

import pytest

from uncertune.data.formats import convert
from uncertune.data.templates import smollm2_template, training_template
from uncertune.errors import UserError

DEFAULT_SYSTEM = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"


def turns(*pairs):
    return [{"role": role, "content": content} for role, content in pairs]


CONVERSATIONS = [
    turns(("user", "Hi")),
    turns(("user", "Hi"), ("assistant", "Hello.")),
    turns(("system", "Be brief."), ("user", "Hi"), ("assistant", "Yo")),
    turns(("system", ""), ("user", ""), ("assistant", "")),
    turns(("user", "\n a \n"), ("assistant", " b\n\n"), ("user", "\tc"), ("assistant", "\nd ")),
    turns(("assistant", "I start."), ("user", "ok"), ("assistant", "fine")),
    turns(("user", "a"), ("user", "b"), ("assistant", "c"), ("assistant", "d")),
    turns(("user", "a"), ("system", "late"), ("assistant", "b")),
    turns(("user", "{{ 1 }} {% x %} <b> & é 漢字 🙂"), ("assistant", "'quotes' \"and\" \\n")),
    turns(("user", "call"), ("tool", "result"), ("assistant", "done")),
]


class FakeTokenizer:
    """A tokenizer's template and nothing else."""

    name_or_path = "some/model"

    def __init__(self, chat_template):
        self.chat_template = chat_template

    def apply_chat_template(self, messages, chat_template=None, tokenize=False, add_generation_prompt=False, **kwargs):
        from transformers.utils.chat_template_utils import render_jinja_template

        template = chat_template or self.chat_template
        template = template["default"] if isinstance(template, dict) else template
        rendered, _ = render_jinja_template(
            [messages], chat_template=template, add_generation_prompt=add_generation_prompt
        )
        return rendered[0]


def by_hand(messages):
    """The text of a conversation, and for every character 1 (the assistant's), -1 (another's words) or 0 (frame)."""
    if messages[0]["role"] != "system":
        messages = [{"role": "system", "content": DEFAULT_SYSTEM}, *messages]
    text, owner = "", []
    for message in messages:
        mine = message["role"] == "assistant"
        for piece, mark in (
            (f"<|im_start|>{message['role']}\n", 0),
            (message["content"], 1 if mine else -1),
            ("<|im_end|>", 1 if mine else 0),
            ("\n", 0),
        ):
            text += piece
            owner += [mark] * len(piece)
    return text, owner


def check_mask(tokenizer, messages):
    """Every assistant token and its end-of-turn token carry the mask, and nothing else does; counts the masked."""
    text, owner = by_hand(messages)
    encoded = tokenizer.apply_chat_template(
        messages, chat_template=smollm2_template(), return_assistant_tokens_mask=True, return_dict=True
    )
    plain = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    assert encoded["input_ids"] == plain["input_ids"]
    assert len(encoded["assistant_masks"]) == len(encoded["input_ids"])
    for masked, (start, end) in zip(encoded["assistant_masks"], plain["offset_mapping"], strict=True):
        owners = owner[start:end]
        assert masked == (1 in owners), (text[start:end], messages)
        assert not (masked and -1 in owners), text[start:end]
    ends = [
        mask
        for mask, token in zip(encoded["assistant_masks"], encoded["input_ids"], strict=True)
        if token == tokenizer.convert_tokens_to_ids("<|im_end|>")
    ]
    spoken = [message["role"] == "assistant" for message in messages]
    assert ends[-len(messages) :] == spoken
    return sum(encoded["assistant_masks"])


@pytest.mark.parametrize("messages", CONVERSATIONS)
@pytest.mark.parametrize("add_generation_prompt", [False, True])
def test_the_marked_copy_renders_the_same_text(smollm2_tokenizer, messages, add_generation_prompt):
    original, marked = (
        smollm2_tokenizer.apply_chat_template(
            messages, chat_template=template, tokenize=False, add_generation_prompt=add_generation_prompt
        )
        for template in (smollm2_tokenizer.chat_template, training_template(smollm2_tokenizer))
    )
    assert marked == original
    assert original == by_hand(messages)[0] + "<|im_start|>assistant\n" * add_generation_prompt


@pytest.mark.parametrize("messages", CONVERSATIONS)
def test_the_mask_is_the_assistants_words_and_end_of_turn(smollm2_tokenizer, messages):
    assert (check_mask(smollm2_tokenizer, messages) > 0) == any(m["role"] == "assistant" for m in messages)


def test_the_mask_on_real_conversations_of_many_turns(smollm2_tokenizer, data_dir):
    checked = masked = spoken = 0
    with gzip.open(data_dir / "sharegpt_sample.jsonl.gz", "rt", encoding="utf-8") as lines:
        for line in lines:
            row = json.loads(line)
            if not 4 <= len(row["conversations"]) <= 20 or len(line) > 12_000:
                continue
            messages = convert(row, "sharegpt")["messages"]
            if any(f"<|im_{mark}|>" in m["content"] for m in messages for mark in ("start", "end")):
                continue
            masked += check_mask(smollm2_tokenizer, messages)
            spoken += sum(message["role"] == "assistant" for message in messages)
            checked += 1
            if checked == 400:
                break
    assert checked == 400
    assert spoken >= 800
    assert masked > 50 * spoken


def test_a_template_written_otherwise_that_renders_the_same_is_known(smollm2_tokenizer):
    reworded = smollm2_tokenizer.chat_template.replace("{% for", "{%- for").replace("'role'", '"role"')
    assert reworded != smollm2_tokenizer.chat_template
    assert training_template(FakeTokenizer(reworded)) == smollm2_template()
    assert training_template(FakeTokenizer({"default": reworded, "tools": "x"})) == smollm2_template()


def test_a_template_with_marks_needs_nothing():
    assert training_template(FakeTokenizer(smollm2_template())) is None


def test_a_template_that_trl_has_marked_is_its_copy():
    from trl.chat_template_utils import get_training_chat_template, has_generation_markers, qwen3_chat_template

    marked = training_template(FakeTokenizer(qwen3_chat_template))
    assert has_generation_markers(marked)
    assert marked == get_training_chat_template(FakeTokenizer(qwen3_chat_template))


@pytest.mark.parametrize("chat_template", [None, ""])
def test_no_template(chat_template):
    with pytest.raises(UserError) as caught:
        training_template(FakeTokenizer(chat_template))
    assert "some/model" in str(caught.value)
    assert "chat_template_path" in str(caught.value)
    assert "\n" not in str(caught.value)


UNKNOWN = [
    "{% for m in messages %}[{{ m['role'] }}] {{ m['content'] }}{% endfor %}",
    # as SmolLM2 on every conversation without tools, so its marked copy would lose the tools
    "{% if tools %}{{ tools | tojson }}{% endif %}"
    + smollm2_template().replace("{%- generation -%}", "").replace("{%- endgeneration -%}", ""),
    "{{ raise_exception('never') }}",
    "{% broken",
]


@pytest.mark.parametrize("chat_template", UNKNOWN)
def test_an_unknown_template_says_how_to_mark_it(chat_template):
    with pytest.raises(UserError) as caught:
        training_template(FakeTokenizer(chat_template))
    message = str(caught.value)
    for part in ("some/model", "chat_template_path", "{% generation %}…{% endgeneration %}", "end-of-turn"):
        assert part in message
    assert "\n" not in message


def test_a_file_of_the_marked_copy_can_be_given_to_trl():
    from trl.chat_template_utils import has_generation_markers

    assert has_generation_markers(smollm2_template())


@pytest.mark.parametrize("name", ["llama3_1", "llama3_2"])
@pytest.mark.parametrize("messages", CONVERSATIONS)
def test_llamas_template_is_marked_where_it_writes_a_turn(name, messages):
    """The same text but for the day, and the marks around each answer and its ``<|eot_id|>``."""
    import trl
    from transformers.utils.chat_template_utils import render_jinja_template

    original = (Path(trl.__file__).parent / "chat_templates" / f"{name}.jinja").read_text()
    marked = training_template(FakeTokenizer(original))
    (text,), (spans,) = render_jinja_template(
        [messages], chat_template=marked, return_assistant_tokens_mask=True, bos_token="<|begin|>"
    )
    (today,), _ = render_jinja_template([messages], chat_template=original, bos_token="<|begin|>")
    day = re.compile(r"Today Date: \d\d \w{3} \d{4}\n")
    assert day.search(text).group() == "Today Date: 26 Jul 2024\n"
    assert day.sub("", text) == day.sub("", today)
    said = [message["content"].strip() + "<|eot_id|>" for message in messages if message["role"] == "assistant"]
    assert [text[start:end] for start, end in spans] == said
