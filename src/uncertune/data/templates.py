"""Chat templates with marks around the assistant's text, for a loss on the assistant's tokens only.

TRL's ``assistant_only_loss`` reads the marks ``{% generation %} ... {% endgeneration %}`` from the chat template. TRL
has marked copies of many models' templates; this file adds SmolLM2's and Llama 3's. In other templates the assistant's
turns are found, if possible, by rendering a conversation with and without them.
"""

import re
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from uncertune.errors import UserError

_SMOLLM2 = Path(__file__).parent / "templates" / "smollm2.jinja"

_PROBES: tuple[list[dict[str, str]], ...] = (
    [{"role": "user", "content": "a"}],
    [{"role": "system", "content": "  s\n"}, {"role": "user", "content": "\n b "}],
    [{"role": "assistant", "content": "c"}, {"role": "user", "content": "d"}],
    [{"role": "user", "content": "<e>"}, {"role": "assistant", "content": " f\n"}, {"role": "user", "content": ""}],
    [{"role": "user", "content": "g"}, {"role": "tool", "content": "h"}, {"role": "assistant", "content": ""}],
    [{"role": "user", "content": "i"}, {"role": "system", "content": "j"}, {"role": "user", "content": "k"}],
)


@dataclass(frozen=True)
class Marks:
    """How the assistant's tokens are found in a rendered conversation."""

    template: str | None = None
    """A marked copy of the tokenizer's chat template; None for the tokenizer's own."""
    by_rendering: bool = False
    """Without marks: an assistant's turn is the text that it adds to the rendering, after the generation prompt."""


def assistant_marks(tokenizer: Any) -> Marks:
    """How to find the assistant's tokens: by marks in the template, otherwise by rendering.

    Raises ``UserError``, with the fixes, for a template in which neither is possible.
    """
    try:
        return Marks(training_template(tokenizer))
    except UserError:
        if tokenizer.chat_template and _found_by_rendering(tokenizer):
            return Marks(by_rendering=True)
        raise


def assistant_span(render: Callable[..., str], turns: list[dict[str, Any]], place: int) -> tuple[int, int]:
    """The range in characters of the assistant's turn ``place``, end-of-turn token included, in the rendering.

    ``render(turns, add_generation_prompt=...)`` is the chat template. Raises ``ValueError`` unless the rendering of the
    earlier turns with the generation prompt is a prefix of the rendering with this turn, and that a prefix of the
    whole.
    """
    if place == 0:
        raise ValueError("the conversation begins with the assistant")
    before = render(turns[:place], add_generation_prompt=True)
    after = render(turns[: place + 1], add_generation_prompt=False).rstrip()
    if not (after.startswith(before) and render(turns, add_generation_prompt=False).startswith(after)):
        raise ValueError("the template renders a turn differently when others follow it")
    return len(before), len(after)


_ENDS = ("What is said first?", "The first answer", "And second?", "The second answer")


def _found_by_rendering(tokenizer: Any) -> bool:
    """Whether every assistant turn of a conversation is found, with an end-of-turn token after its text."""
    from jinja2 import TemplateError

    def render(turns: list[dict[str, Any]], add_generation_prompt: bool) -> str:
        text = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=add_generation_prompt)
        return str(text)

    turns = [{"role": ("user", "assistant")[n % 2], "content": said} for n, said in enumerate(_ENDS)]
    try:
        whole = render(turns, False)
        found = [whole[slice(*assistant_span(render, turns, place))].strip() for place in (1, 3)]
    except (TemplateError, ValueError, TypeError):
        return False
    ends = {text.removeprefix(said) for text, said in zip(found, (_ENDS[1], _ENDS[3]), strict=True)}
    return len(ends) == 1 and ends.isdisjoint({"", *found})


def training_template(tokenizer: Any) -> str | None:
    """The chat template with marks, or None if the tokenizer's own has them, for ``apply_chat_template``.

    It is TRL's marked copy if TRL knows the template. A template that renders the same text as SmolLM2-Instruct's
    (compared on conversations with and without a system prompt, of several turns, with and without a generation prompt)
    is replaced by the marked copy of this package. Those of Llama 3.1 to 3.3 get marks around each assistant turn; the
    date in their system prompt is then fixed at its default, so that a run does not depend on the day.

    Raises ``UserError`` if the tokenizer has no template, or an unknown one without marks.
    """
    from trl.chat_template_utils import get_training_chat_template, has_generation_markers

    template = tokenizer.chat_template
    if isinstance(template, dict):
        template = template.get("default")
    model = getattr(tokenizer, "name_or_path", "") or "this model"
    if not template:
        raise UserError(
            f"chat_template_path: the tokenizer of {model!r} has no chat template; set chat_template_path to a .jinja "
            "file or to a model whose template it should use"
        )
    if has_generation_markers(template):
        return None
    with suppress(ValueError):  # TRL does not know it
        return get_training_chat_template(tokenizer)
    if template.count(_LLAMA_TURN) == 1:
        return _marked_llama(template)
    marked = smollm2_template()
    if _uses_only_messages(template) and _renders(tokenizer, template) == _renders(tokenizer, marked):
        return marked
    raise UserError(
        f"chat_template_path: the chat template of {model!r} does not mark the assistant's text, and rendering does "
        "not find its turns either: give prompt and completion instead of messages, or set assistant_only_loss: "
        "false, or wrap the assistant's content and its end-of-turn token in {% generation %}…{% endgeneration %} and "
        "pass that .jinja file as chat_template_path"
    )


_LLAMA_HEAD = r"{{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n'"
_LLAMA_TURN = _LLAMA_HEAD + "+ message['content'] | trim + '<|eot_id|>' }}"
_LLAMA_TODAY = re.compile(r'strftime_now\("%d %b %Y"\)')
_LLAMA_DATE = re.compile(r'set date_string = ("\d\d \w{3} \d{4}")')


def _marked_llama(template: str) -> str:
    """The template with marks around the assistant's text and its ``<|eot_id|>``, and a fixed date."""
    words = "{{- message['content'] | trim + '<|eot_id|>' }}"
    marked = f"{{%- generation %}}{words}{{%- endgeneration %}}"
    turn = f"{_LLAMA_HEAD} }}}}{{%- if message['role'] == 'assistant' %}}{marked}{{%- else %}}{words}{{%- endif %}}"
    out = template.replace(_LLAMA_TURN, turn)
    date = _LLAMA_DATE.search(out)
    return _LLAMA_TODAY.sub(date.group(1), out) if date else out


@cache
def smollm2_template() -> str:
    """SmolLM2-Instruct's template with the assistant's content and its ``<|im_end|>`` marked, not the newline after."""
    return _SMOLLM2.read_text(encoding="utf-8")


def _uses_only_messages(template: str) -> bool:
    """Whether the template reads the messages alone (no tools, documents, dates), so that probes are conclusive."""
    from jinja2 import Environment, TemplateSyntaxError, meta

    try:
        names = meta.find_undeclared_variables(Environment(extensions=["jinja2.ext.loopcontrols"]).parse(template))
    except TemplateSyntaxError:
        return False
    return names <= {"messages", "add_generation_prompt"}


def _renders(tokenizer: Any, template: str) -> list[str] | None:
    """The probe conversations as text; None if the template refuses one of them."""
    from jinja2 import TemplateError

    try:
        return [
            tokenizer.apply_chat_template(
                probe, chat_template=template, tokenize=False, add_generation_prompt=add_generation_prompt
            )
            for probe in _PROBES
            for add_generation_prompt in (False, True)
        ]
    except (TemplateError, TypeError):
        return None
