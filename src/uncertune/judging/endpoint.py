"""A judge behind an OpenAI-compatible endpoint: vLLM, llama.cpp, Ollama, or a hosted service.

One request per question, several at a time. A timeout, a broken connection, a reply that is not a chat completion, 408,
429 and 5xx are retried with growing pauses; the last failure is the question's outcome. The key is read from the
environment for each request, and every text from the server is checked for it.
"""

from __future__ import annotations

import contextlib
import math
import os
import random
import re
import threading
from collections.abc import Generator, Mapping, Sequence
from concurrent.futures import CancelledError, ThreadPoolExecutor, as_completed
from typing import Any
from urllib.parse import SplitResult, urlsplit

import httpx2

from uncertune.data.files import first_line
from uncertune.errors import UserError
from uncertune.judging.judge import BAD_REPLY, TEMPLATE, Question, Reply, read_reply, text_of, writable
from uncertune.judging.requests import Requests, Response
from uncertune.judging.secret import withhold

KEY_VARIABLE = "OPENAI_API_KEY"
PAUSE = 1.0
"""Seconds before the first retry; each further retry waits twice as long, at most LONGEST_PAUSE."""
LONGEST_PAUSE = 60.0
HOPELESS = 20
"""After this many failures in a row, questions are not retried until one succeeds."""
_LONGEST_TEXT = 2000
_CHECK_SECONDS = 10.0


class Endpoint:
    """A chat model at ``url`` (with its ``/v1``).

    The key is the value of the environment variable ``key_variable``; without that, KEY_VARIABLE's is sent to https
    addresses only. ``timeout`` is the longest time in seconds for a whole request. Raises UserError for an address, a
    key or a number that cannot be used.
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
        parts = _address(url)
        if not 0 < timeout < math.inf:
            raise UserError(f"judge_timeout must be a finite number of seconds above 0, got {timeout}")
        self._key_variable = key_variable or KEY_VARIABLE
        self._sends_key = parts.scheme == "https" or key_variable is not None
        _check_key(key_variable, self._key if self._sends_key else "-")
        if withhold(url + model, self._key) != url + model:
            raise UserError("judge_url: the address or the model's name contains the key: remove it")
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
        """Raise UserError if the server does not answer or refuses the key."""
        try:
            with self._client() as client:
                answer = client.send("GET", f"{self.url}/models", _CHECK_SECONDS)
        except TimeoutError:
            raise self._unreachable(f"no reply within {_CHECK_SECONDS:g} s") from None
        except httpx2.TransportError as error:
            raise self._unreachable(error) from None
        self._check_status(answer, (401, 403))

    def ask(self, questions: Sequence[Question]) -> Generator[tuple[int, Reply]]:
        """Replies as they come. After a fatal error, replies to pending requests are still returned."""
        self._stopped.clear()
        ending: UserError | None = None
        pool = ThreadPoolExecutor(self._concurrency)
        try:
            with self._client() as client:
                futures = {pool.submit(self._reply, client, one): number for number, one in enumerate(questions)}
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
        finally:  # the client is closed, which ends pending requests
            self._stopped.set()
            pool.shutdown(cancel_futures=True)
        if ending is not None:
            raise ending

    def _client(self) -> Requests:
        return Requests({"Authorization": f"Bearer {self._key}"} if self._key else {}, self._concurrency)

    def _reply(self, client: Requests, question: Question) -> Reply:
        outcome, said = "stopped", ""
        attempts = 1 if self._failures >= HOPELESS else self._attempts
        for attempt in range(attempts):
            pause = min(PAUSE * 2**attempt, LONGEST_PAUSE) * random.uniform(0.5, 1)
            try:
                answer = self._post(client, question)
            except CancelledError:  # the client was closed: the whole command ends
                return Reply("stopped")
            except TimeoutError:
                outcome, said = "timeout", ""
            except httpx2.ConnectError as error:
                outcome, said = "unreachable", str(error)
            except httpx2.TransportError as error:
                outcome, said = "disconnected", self._clean(first_line(error))
            else:
                self._check_status(answer, (401, 403, 404))
                reply = self._read(answer)
                if reply.outcome != BAD_REPLY and 200 <= answer.status < 300:
                    self._failures = 0
                    return reply
                outcome, said = reply.outcome, reply.text
                if 300 <= answer.status < 500 and answer.status not in (408, 429):
                    break
                pause = max(pause, _retry_after(answer))
            if attempt + 1 < attempts and self._stopped.wait(pause):
                break
        if outcome == "unreachable" and not self._stopped.is_set():
            raise self._unreachable(said)
        self._failures += 1
        return Reply(outcome, text=said)

    def _post(self, client: Requests, question: Question) -> Response:
        """One request; a field that this server refuses is left out from now on."""
        while True:
            fields = dict(self._fields)
            messages = [{"role": "user", "content": text_of(question)}]
            content = {"model": self._model, "messages": messages, **fields}
            answer = client.send("POST", f"{self.url}/chat/completions", self._timeout, content)
            said = answer.text or ""
            refused = [name for name in fields if name in said] if answer.status in (400, 422) else []
            if not refused:
                return answer
            kept = {name: value for name, value in fields.items() if name not in refused}
            if "logprobs" not in kept:
                kept.pop("top_logprobs", None)
            if "max_tokens" in refused and "max_completion_tokens" in said:
                kept["max_completion_tokens"] = fields["max_tokens"]
            self._fields = kept

    def _read(self, answer: Response) -> Reply:
        """The reply of a chat completion; BAD_REPLY for a body of any other form, ``http_…`` for another status."""
        if not 200 <= answer.status < 300:
            return Reply(f"http_{answer.status}", text=self._clean(answer.text or ""))
        try:
            choice = answer.json()["choices"][0]
            message = choice["message"]
            refusal = message.get("refusal") or ("content_filter" if _filtered(choice) else None)
            text = message.get("content") or refusal or ""
            return read_reply(self._clean(str(text)), _probabilities(choice), refused=refusal is not None)
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
            return Reply(BAD_REPLY, text=self._clean(answer.text or "a body that is too long"))

    def _check_status(self, answer: Response, statuses: Sequence[int]) -> None:
        """Raise UserError for a reply that every question would get."""
        if answer.status not in statuses:
            return
        if answer.status == 404:
            raise UserError(
                f"judge: {self.url} has no model {self._model!r}, or is not an OpenAI-compatible server (404): check "
                "--judge, and that --judge_url ends as the server expects, usually in /v1"
            )
        why = f"the key in {self._key_variable} is not accepted" if self._key else "it asks for a key: give --judge_key"
        raise UserError(f"judge_key: {self.url} answers {answer.status}: {why}")

    def _unreachable(self, reason: object) -> UserError:
        return UserError(
            f"judge_url: {self.url} cannot be reached ({self._clean(str(reason)) or type(reason).__name__}): start the "
            "server or correct the address; judgements so far are kept"
        )

    def _clean(self, text: str) -> str:
        return withhold(writable(text), self._key)[:_LONGEST_TEXT]


def _address(url: str) -> SplitResult:
    """The parts of an address. Raises UserError for an invalid address, and for one that may contain a secret."""
    example = "give one like http://localhost:8000/v1"
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port  # both are checked when they are read
        if parts.username or parts.password or parts.query or parts.fragment or "@" in url or "?" in url:
            raise UserError(
                f"judge_url: the address of {host or 'the judge'} contains a user, a query or a fragment: put the key "
                "in an environment variable and name it with --judge_key"
            )
        httpx2.URL(url)
    except UserError:
        raise
    except (ValueError, UnicodeError, httpx2.InvalidURL) as error:
        raise UserError(f"judge_url is not an address ({first_line(error)}): {example}") from None
    if parts.scheme not in ("http", "https") or not host or not url.isprintable() or " " in url:
        raise UserError(f"judge_url: {parts.path if not parts.netloc else url!r} is not an address: {example}")
    return parts


def _check_key(variable: str | None, key: str | None) -> None:
    """Raise UserError, without repeating the value, for an unset variable and for an invalid key."""
    if variable is not None and not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", variable):
        raise UserError("judge_key takes the name of an environment variable, not the key: put the key in a variable")
    name = KEY_VARIABLE if variable is None else "that it names"
    if not key:
        raise UserError(f"judge_key: the environment variable {name} is not set: put the judge's key there")
    if not (key.isascii() and key.isprintable()) or " " in key:
        raise UserError(f"judge_key: the environment variable {name} contains characters that a key cannot have")


def _filtered(choice: Mapping[str, Any]) -> bool:
    return choice.get("finish_reason") == "content_filter"


def _probabilities(choice: Mapping[str, Any]) -> list[dict[str, float]]:
    """The likeliest tokens at each position of the reply and their probabilities.

    The entry of a position with a value that is not a log-probability (NaN, above 0, not a number) is empty.
    """
    out = []
    for position in ((choice.get("logprobs") or {}).get("content")) or ():
        given = {str(one["token"]): one["logprob"] for one in position.get("top_logprobs") or ()}
        out.append(
            {token: math.exp(min(value, 0.0)) for token, value in given.items()}
            if all(_is_log_probability(value) for value in given.values())
            else {}
        )
    return out


def _is_log_probability(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and value <= _ROUNDING


_ROUNDING = 1e-3
"""Largest log-probability above 0 that counts as a server's rounding."""


def _retry_after(answer: Response) -> float:
    """Seconds the server asks to wait, at most LONGEST_PAUSE; 0 without such a header."""
    with contextlib.suppress(ValueError):
        seconds = float(answer.headers.get("retry-after", 0))
        return min(max(seconds, 0.0), LONGEST_PAUSE) if math.isfinite(seconds) else 0.0
    return 0.0
