"""A conversation as token ids, with the assistant's tokens marked; errors of its chat template become one line."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from uncertune.data.templates import Marks, assistant_span
from uncertune.data.turns import ASSISTANT, TOOL, Messages
from uncertune.errors import UserError


def encode(
    tokenizer: Any,
    turns: Messages,
    where: str,
    *,
    tools: list[Any] | None = None,
    marks: Marks | None = None,
    template: str | None = None,
    add_generation_prompt: bool = False,
    options: dict[str, Any] | None = None,
    named: str = "the chat template",
) -> tuple[list[int], list[int] | None]:
    """Token ids of a conversation and, with ``marks``, 1 for every token of the assistant and 0 for the others.

    ``template`` replaces the tokenizer's own; ``options`` are further variables for it. Raises ``UserError`` that
    begins with ``where`` if the template refuses the conversation or leaves out its tools, or if the assistant's turns
    cannot be found.
    """
    if not (template or tokenizer.chat_template or (marks and marks.template)):
        raise UserError(
            f"{where} is a conversation, and the tokenizer has no chat template: set chat_template_path to a template "
            "file (.jinja) or to a model whose template fits"
        )
    given = {**(options or {}), "chat_template": marks.template if marks else template, "tools": tools}

    def render(turns: Messages, add_generation_prompt: bool = False, **changes: Any) -> str:
        fixed = {**given, **changes, "add_generation_prompt": add_generation_prompt}
        return str(tokenizer.apply_chat_template(turns, tokenize=False, **fixed))

    def encoded() -> Any:
        if marks is not None and marks.by_rendering:
            return _marked_by_rendering(tokenizer, turns, render, where)
        return tokenizer.apply_chat_template(
            turns,
            tokenize=True,
            return_dict=True,
            return_assistant_tokens_mask=marks is not None,
            add_generation_prompt=add_generation_prompt,
            **given,
        )

    found = _refusing(encoded, f"{where}: {named}")
    if tools or any(turn.keys() - {"role", "content"} or turn["role"] == TOOL for turn in turns):
        _check_tools(render, turns, tools, where)
    mask = list(found["assistant_masks"]) if marks is not None else None
    return list(found["input_ids"]), mask


def _refusing(action: Callable[[], Any], template: str) -> Any:
    """The result of the action; whatever the code in a chat template raises becomes a ``UserError`` of one line."""
    try:
        return action()
    except UserError:
        raise
    except Exception as error:
        said = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"{template} refuses this conversation: {said}") from error


def _marked_by_rendering(
    tokenizer: Any, turns: Messages, render: Callable[..., str], where: str
) -> dict[str, list[int]]:
    """Ids, and a mask of the tokens in the assistant's turns, from after the header through the end-of-turn token."""
    text = render(turns)
    try:
        spans = [assistant_span(render, turns, place) for place, turn in enumerate(turns) if turn["role"] == ASSISTANT]
    except ValueError as error:
        raise UserError(
            f"{where}: the assistant's turns cannot be found in the rendered conversation ({error}): give a "
            "template with {% generation %} marks as chat_template_path, or set assistant_only_loss: false"
        ) from error
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    mask = [
        int(any(first < end and start < last and first < last for start, end in spans))
        for first, last in encoded["offset_mapping"]
    ]
    return {"input_ids": encoded["input_ids"], "assistant_masks": mask}


def _check_tools(render: Callable[..., str], turns: Messages, tools: list[Any] | None, where: str) -> None:
    """Raise ``UserError`` if the template renders the same text without the tools, the calls or the results."""
    whole = render(turns)
    bare = [{key: value for key, value in turn.items() if key != "tool_calls"} for turn in turns]
    others = [turn for turn in turns if turn["role"] != TOOL]
    variants: list[tuple[str, bool, Callable[[], str]]] = [
        ("the descriptions in 'tools'", bool(tools), lambda: render(turns, tools=None)),
        ("'tool_calls'", bare != turns, lambda: render(bare)),
        ("turns of the role 'tool'", len(others) < len(turns), lambda: render(others)),
    ]
    for what, there, without in variants:
        if there and _same(without, whole):
            raise UserError(
                f"{where}: the chat template leaves out {what}, so the model would not see them: set "
                "chat_template_path to a template with tools, or remove them from the data"
            )


def _same(render: Callable[[], str], text: str) -> bool:
    """Whether the rendering succeeds and is this text; a template may refuse a conversation without its calls."""
    from jinja2 import TemplateError

    try:
        return render() == text
    except (TemplateError, TypeError, KeyError, AttributeError, ValueError):
        return False
