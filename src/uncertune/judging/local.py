"""A judge that is a transformers model in this process: its next-token probabilities of the two letters."""

from __future__ import annotations

import contextlib
import functools
import hashlib
from collections.abc import Generator, Iterator, Mapping, Sequence
from typing import Any

import torch

from uncertune.errors import UserError
from uncertune.judging.judge import JUDGED, LABELS, TEMPLATE, TOO_LONG, UNPARSABLE, Question, Reply, text_of
from uncertune.models import fingerprint, load_model, load_tokenizer, resolve_model
from uncertune.models.loading import checked_weights


class LocalJudge:
    """One forward pass per question, batched by length; the model is loaded at the first question."""

    def __init__(self, model: str, *, batch_size: int = 4, dtype: str = "auto", allow_pickle: bool = False) -> None:
        self.name, self._batch_size, self._dtype, self._allow_pickle = model, batch_size, dtype, allow_pickle
        with _as_judge(), checked_weights(resolve_model(model), allow_pickle=allow_pickle):
            self._tokenizer = load_tokenizer(model)
        if not self._tokenizer.chat_template:
            raise UserError(f"judge: {model!r} has no chat template, so it cannot be asked: choose a chat model")
        self._labels = [_tokens_of(label, self._tokenizer) for label in LABELS]
        if not all(self._labels):
            raise UserError(f"judge: {model!r} has no single token for A and for B: choose another model")
        self._model: Any = None

    @functools.cached_property
    def identity(self) -> Mapping[str, Any]:
        template = hashlib.blake2b(str(self._tokenizer.chat_template).encode(), digest_size=8).hexdigest()
        weights = fingerprint(self._loaded())
        return {"kind": "local", "weights": weights, "chat_template": template, "template": TEMPLATE}

    def check(self) -> None:
        """Do nothing: only loading the weights can still fail."""

    @torch.no_grad()
    def ask(self, questions: Sequence[Question]) -> Generator[tuple[int, Reply]]:
        """Replies in batches, the longest prompts first."""
        model = self._loaded()
        ids = [self._encoded(question) for question in questions]
        room = getattr(model.config.get_text_config(), "max_position_embeddings", None)
        fitting = []
        for number, one in enumerate(ids):
            if room and len(one) > room:
                yield number, Reply(TOO_LONG, text=f"{len(one)} tokens, more than the judge's {room}")
            else:
                fitting.append(number)
        fitting.sort(key=lambda number: -len(ids[number]))
        for start in range(0, len(fitting), self._batch_size):
            chosen = fitting[start : start + self._batch_size]
            log_probs_BV = self._next_token([ids[number] for number in chosen])
            for number, log_probs_V in zip(chosen, log_probs_BV, strict=True):
                a, b = (log_probs_V[tokens].logsumexp(0) for tokens in self._labels)
                if not torch.isfinite(a + b):
                    yield number, Reply(UNPARSABLE, text="non-finite probabilities of the letters")
                    continue
                said = self._tokenizer.decode([int(log_probs_V.argmax())])
                yield number, Reply(JUDGED, float((a - b).sigmoid()), said, float(torch.logaddexp(a, b).exp()))

    def _encoded(self, question: Question) -> list[int]:
        turns = [{"role": "user", "content": text_of(question)}]
        found = self._tokenizer.apply_chat_template(
            turns, add_generation_prompt=True, return_dict=True, tokenizer_kwargs={"verbose": False}
        )
        return list(found["input_ids"])

    def _next_token(self, rows: Sequence[list[int]]) -> torch.Tensor:
        """(B, V) log-probabilities of the token after each row."""
        model = self._loaded()
        length = max(map(len, rows))
        pad = self._tokenizer.pad_token_id if self._tokenizer.pad_token_id is not None else 0
        device = next(model.parameters()).device
        ids = torch.tensor([[pad] * (length - len(row)) + row for row in rows], device=device)
        places = torch.arange(length, device=device) - torch.tensor(
            [[length - len(row)] for row in rows], device=device
        )
        logits = model(
            input_ids=ids,
            attention_mask=(places >= 0).long(),
            position_ids=places.clamp(min=0),
            logits_to_keep=1,
            use_cache=False,
        ).logits
        return logits[:, -1].double().log_softmax(-1)

    def _loaded(self) -> Any:
        if self._model is None:
            with _as_judge():
                model = load_model(self.name, dtype=self._dtype, allow_pickle=self._allow_pickle)
            if torch.accelerator.is_available():
                model.to(torch.accelerator.current_accelerator())
            self._model = model.requires_grad_(False).eval()
        return self._model


@contextlib.contextmanager
def _as_judge() -> Iterator[None]:
    """A UserError names the field that the model came from."""
    try:
        yield
    except UserError as error:
        raise UserError(f"judge: {error}") from error


def _tokens_of(label: str, tokenizer: Any) -> list[int]:
    """The single tokens of the letter, with and without a space before it."""
    spelled = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in (label, f" {label}")]
    return sorted({ids[0] for ids in spelled if len(ids) == 1})
