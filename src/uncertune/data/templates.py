"""Chat templates that mark what the assistant says, for a loss on the assistant's tokens only.

TRL's ``assistant_only_loss`` reads the mark ``{% generation %} ... {% endgeneration %}`` from the chat template. It
brings marked copies of many models' templates; this file adds SmolLM2's, and says what to do about the rest.
"""

import re
from contextlib import suppress
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


def training_template(tokenizer: Any) -> str | None:
    """The chat template with the marks, or None where the tokenizer's own has them: what ``apply_chat_template`` takes.

    It is TRL's marked copy, where TRL knows the template. One that renders what SmolLM2-Instruct's renders (compared on
    conversations with and without a system prompt, of several turns, with and without a generation prompt) gives the
    marked copy kept here, which renders the same text. Those of Llama 3.1 to 3.3 are marked where they write a turn;
    the date in their system prompt is then always their default one, so that a run does not depend on the day.

    Raises ``UserError``, one line: the tokenizer has no template, or one without marks that nobody here knows.
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
        f"chat_template_path: the chat template of {model!r} does not mark what the assistant says; wrap the "
        "assistant's content and its end-of-turn token in {% generation %}…{% endgeneration %} and pass that .jinja "
        "file as chat_template_path"
    )


_LLAMA_HEAD = r"{{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n'"
_LLAMA_TURN = _LLAMA_HEAD + "+ message['content'] | trim + '<|eot_id|>' }}"
_LLAMA_TODAY = re.compile(r'strftime_now\("%d %b %Y"\)')
_LLAMA_DATE = re.compile(r'set date_string = ("\d\d \w{3} \d{4}")')


def _marked_llama(template: str) -> str:
    """The template with marks around what the assistant says and its ``<|eot_id|>``, and a date that stays."""
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
    """Whether the template reads nothing beside the messages (no tools, documents, dates), so that probes decide."""
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
