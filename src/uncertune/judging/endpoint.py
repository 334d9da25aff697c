"""A judge behind an OpenAI-compatible endpoint: vLLM, llama.cpp, Ollama, or a hosted one.

One request a question, several at a time. A timeout, a broken connection, 408, 429 and 5xx are tried again with growing
pauses; what still fails is the question's outcome. The key is read from the environment when a request is made, and
what a server says is cleaned of it.
"""

from __future__ import annotations

import contextlib
import math
import os
import random
import threading
from collections.abc import Generator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import Any
from urllib.parse import urlsplit

import httpx2

from uncertune.data.files import first_line
from uncertune.errors import UserError
from uncertune.judging.judge import TEMPLATE, UNPARSABLE, Question, Reply, read_reply, text_of

KEY_VARIABLE = "OPENAI_API_KEY"
PAUSE = 1.0
"""Seconds before the first repetition; each further one waits twice as long, at most LONGEST_PAUSE."""
LONGEST_PAUSE = 60.0
HOPELESS = 20
"""So many failures in a row, and questions are tried only once each until one succeeds."""
_LONGEST_TEXT = 2000
_CHECK_SECONDS = 10.0


class Endpoint:
    """A chat model at ``url`` (with its ``/v1``).

    The key is sent where ``key_variable`` says which, and otherwise KEY_VARIABLE's to addresses with https only.
    """

    def __init__(
        self,
        model: str,
        url: str,
        *,
        key_variable: str | None = None,
        concurrency: int = 8,
        timeout: float = 120.0,
        retries: int = 4,
        max_tokens: int = 16,
    ) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise UserError(f"judge_url: {_shown(url)!r} is no address: give one like http://localhost:8000/v1")
        self._key_variable = key_variable or KEY_VARIABLE
        self._sends_key = parts.scheme == "https" or key_variable is not None
        if parts.username or parts.password or parts.query:
            raise UserError(
                f"judge_url: {_shown(url)!r} holds more than an address: put the key in the variable "
                f"{self._key_variable}"
            )
        if self._sends_key and not self._key:
            raise UserError(
                f"judge_key: the environment variable {self._key_variable} is not set: put the judge's key there"
            )
        self.url, self._model = url.rstrip("/"), model
        self._concurrency, self._timeout, self._attempts = concurrency, timeout, retries + 1
        self.name = f"{model} ({parts.netloc})"
        self.identity: Mapping[str, Any] = {
            "kind": "endpoint",
            "model": model,
            "url": self.url,
            "max_tokens": max_tokens,
            "temperature": 0,
            "template": TEMPLATE,
        }
        self._fields: dict[str, Any] = {
            "max_tokens": max_tokens,
            "temperature": 0,
            "logprobs": True,
            "top_logprobs": 20,
        }
        self._stopped = threading.Event()
        self._failures = 0

    @property
    def _key(self) -> str | None:
        return os.environ.get(self._key_variable) if self._sends_key else None

    def check(self) -> None:
        """Raise UserError where nothing answers, or the key is refused."""
        try:
            with self._client(_CHECK_SECONDS) as client:
                answer = client.get(f"{self.url}/models")
        except httpx2.TransportError as error:
            raise self._unreachable(error) from None
        self._check_status(answer, (401, 403))

    def ask(self, questions: Sequence[Question]) -> Generator[tuple[int, Reply]]:
        """Replies as they come. What has been asked when one of them ends it all is still handed over."""
        self._stopped.clear()
        ending: UserError | None = None
        with self._client(self._timeout) as client, ThreadPoolExecutor(self._concurrency) as pool:
            futures = {pool.submit(self._reply, client, one): number for number, one in enumerate(questions)}
            try:
                for future in as_completed(futures):
                    if future.cancelled():
                        continue
                    try:
                        reply = future.result()
                    except UserError as error:
                        ending = ending or error
                        self._stopped.set()
                        for other in futures:
                            other.cancel()
                    else:
                        yield futures[future], reply
            finally:
                self._stopped.set()
                pool.shutdown(cancel_futures=True)
        if ending is not None:
            raise ending

    def _client(self, timeout: float) -> httpx2.Client:
        limits = httpx2.Limits(max_connections=self._concurrency)
        return httpx2.Client(
            timeout=timeout, limits=limits, headers={"Authorization": f"Bearer {self._key}"} if self._key else None
        )

    def _reply(self, client: httpx2.Client, question: Question) -> Reply:
        outcome, said = "stopped", ""
        attempts = 1 if self._failures >= HOPELESS else self._attempts
        for attempt in range(attempts):
            pause = min(PAUSE * 2**attempt, LONGEST_PAUSE) * random.uniform(0.5, 1)
            try:
                answer = self._post(client, question)
            except httpx2.ConnectError as error:
                outcome, said = "unreachable", str(error)
            except httpx2.TimeoutException:
                outcome, said = "timeout", ""
            except httpx2.TransportError as error:
                outcome, said = "disconnected", self._clean(first_line(error))
            else:
                if answer.is_success:
                    self._failures = 0
                    return self._read(answer)
                self._check_status(answer, (401, 403, 404))
                outcome, said = f"http_{answer.status_code}", self._clean(answer.text)
                if answer.status_code < 500 and answer.status_code not in (408, 429):
                    break
                pause = max(pause, _retry_after(answer))
            if attempt + 1 < attempts and self._stopped.wait(pause):
                break
        if outcome == "unreachable" and not self._stopped.is_set():
            raise self._unreachable(said)
        self._failures += 1
        return Reply(outcome, text=said)

    def _post(self, client: httpx2.Client, question: Question) -> httpx2.Response:
        """One request; a field that this server does not take is left out from then on."""
        while True:
            fields = dict(self._fields)
            messages = [{"role": "user", "content": text_of(question)}]
            answer = client.post(
                f"{self.url}/chat/completions", json={"model": self._model, "messages": messages, **fields}
            )
            refused = [name for name in fields if name in answer.text] if answer.status_code in (400, 422) else []
            if not refused:
                return answer
            kept = {name: value for name, value in fields.items() if name not in refused}
            if "logprobs" not in kept:
                kept.pop("top_logprobs", None)
            if "max_tokens" in refused and "max_completion_tokens" in answer.text:
                kept["max_completion_tokens"] = fields["max_tokens"]
            self._fields = kept

    def _read(self, answer: httpx2.Response) -> Reply:
        try:
            choice = answer.json()["choices"][0]
            message = choice["message"]
            refusal = message.get("refusal") or ("content_filter" if _filtered(choice) else None)
            text = message.get("content") or refusal or ""
            return read_reply(self._clean(str(text)), _probabilities(choice), refused=refusal is not None)
        except (ValueError, LookupError, TypeError, AttributeError):
            return Reply(UNPARSABLE, text=self._clean(answer.text))

    def _check_status(self, answer: httpx2.Response, statuses: Sequence[int]) -> None:
        """Raise UserError where every question would be turned away."""
        if answer.status_code not in statuses:
            return
        if answer.status_code == 404:
            raise UserError(
                f"judge: {self.url} knows no model {self._model!r}, or is no such server (404): check --judge, "
                "and that --judge_url ends as the server says, mostly in /v1"
            )
        why = f"the key in {self._key_variable} is not accepted" if self._key else "it asks for a key: give --judge_key"
        raise UserError(f"judge_key: {self.url} answers {answer.status_code}: {why}")

    def _unreachable(self, reason: object) -> UserError:
        return UserError(
            f"judge_url: {self.url} cannot be reached ({self._clean(str(reason)) or type(reason).__name__}): start the "
            "server or mend the address; what was judged is kept"
        )

    def _clean(self, text: str) -> str:
        return (text.replace(self._key, "***") if self._key else text)[:_LONGEST_TEXT]


def _shown(url: str) -> str:
    """An address without what may be a secret."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}" if parts.netloc else parts.path


def _filtered(choice: Mapping[str, Any]) -> bool:
    return choice.get("finish_reason") == "content_filter"


def _probabilities(choice: Mapping[str, Any]) -> list[dict[str, float]]:
    """At each place of the reply the likeliest tokens; a token in several spellings (with a space) counts once each."""
    out = []
    for place in ((choice.get("logprobs") or {}).get("content")) or ():
        out.append({one["token"]: math.exp(one["logprob"]) for one in place.get("top_logprobs") or ()})
    return out


def _retry_after(answer: httpx2.Response) -> float:
    """Seconds the server asks to wait, at most LONGEST_PAUSE; 0 where it names none."""
    with contextlib.suppress(ValueError):
        return min(max(float(answer.headers.get("retry-after", 0)), 0.0), LONGEST_PAUSE)
    return 0.0
