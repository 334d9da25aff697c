"""HTTP requests with a deadline for the whole exchange and a bound on the reply's size."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Mapping
from concurrent.futures import CancelledError
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import httpx2

LARGEST_BODY = 4 * 2**20
"""Bytes of a reply that are read; a longer one counts as broken."""


@dataclass(frozen=True)
class Response:
    """A response: status, headers, and body as text (None if it is longer than LARGEST_BODY)."""

    status: int
    headers: Mapping[str, str]
    text: str | None

    def json(self) -> Any:
        """The body as JSON. Raises ValueError for anything else."""
        if self.text is None:
            raise ValueError("the body is too long")
        return json.loads(self.text)


class Requests:
    """A client for many threads. An event loop in a separate thread sends; ``send`` waits for the result.

    The timeouts of HTTP libraries restart with every byte, so a server that sends slowly never exceeds them. Here a
    request is cancelled when its total time is over.
    """

    def __init__(self, headers: Mapping[str, str], connections: int = 1) -> None:
        self._headers, self._connections = dict(headers), connections
        self._closing = threading.Lock()
        self._closed = False

    def __enter__(self) -> Self:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        limits = httpx2.Limits(max_connections=self._connections)
        self._client = httpx2.AsyncClient(timeout=None, limits=limits, headers=self._headers)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._closing:
            self._closed = True
        asyncio.run_coroutine_threadsafe(self._finish(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def send(self, method: str, url: str, seconds: float, content: Any = None) -> Response:
        """One request and its whole reply within ``seconds``.

        Raises ``TimeoutError`` after that, ``httpx2.TransportError`` for a connection that fails, and
        ``CancelledError`` once the client is closed.
        """
        with self._closing:
            if self._closed:
                raise CancelledError
            sent = asyncio.run_coroutine_threadsafe(self._send(method, url, seconds, content), self._loop)
        return sent.result()

    async def _send(self, method: str, url: str, seconds: float, content: Any) -> Response:
        body = None if content is None else json.dumps(content).encode()  # ASCII, so that any text can be sent
        headers = {"Content-Type": "application/json"} if body is not None else {}
        async with (
            asyncio.timeout(seconds),
            self._client.stream(method, url, content=body, headers=headers) as answer,
        ):
            taken = bytearray()
            async for chunk in answer.aiter_bytes():
                taken += chunk
                if len(taken) > LARGEST_BODY:
                    return Response(answer.status_code, answer.headers, None)
            return Response(answer.status_code, answer.headers, taken.decode("utf-8", "replace"))

    async def _finish(self) -> None:
        """Cancel pending requests, and close the connections."""
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        await self._client.aclose()
