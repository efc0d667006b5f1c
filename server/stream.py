"""Server-sent events: keep-alive comments, errors on the way, and an end as soon as the client leaves."""

import asyncio
from collections.abc import AsyncGenerator, Coroutine
from typing import Any, Self, TypeVar

import msgspec
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from headway.server.errors import ClientLeft, as_api_error

Result = TypeVar("Result")

DONE = b"data: [DONE]\n\n"
KEEP_ALIVE = b": keep-alive\n\n"


def frame(payload: Any) -> bytes:
    """One event."""
    return b"data: " + msgspec.json.encode(payload) + b"\n\n"


async def unless_left(receive: Receive, work: Coroutine[Any, Any, Result]) -> Result:
    """Run `work`; cancel it when the client closes the connection. The body must have been read before.

    Raises:
        ClientLeft: the client closed the connection first.
    """
    task = asyncio.create_task(work)
    watch = asyncio.create_task(_left(receive))
    try:
        await asyncio.wait({task, watch}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientLeft
        return task.result()
    finally:
        for each in (task, watch):
            each.cancel()
        await asyncio.gather(task, watch, return_exceptions=True)


async def _left(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


class EventStream(Response):
    """An answer of server-sent events.

    `await stream.begin(receive)` first: it waits for the first event, but no longer than the keep-alive time,
    so that a request that is refused gets an HTTP status. A later error is the stream's last event.
    """

    media_type = "text/event-stream"

    def __init__(self, frames: AsyncGenerator[bytes, None], keep_alive: float) -> None:
        super().__init__(headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"})
        del self.headers["content-length"]
        self._frames = frames
        self._keep_alive = keep_alive
        self._next: asyncio.Task[bytes | None] | None = None

    async def begin(self, receive: Receive) -> Self:
        """Wait for the first event.

        Raises:
            HeadwayError: the request failed before its first event.
            ClientLeft: the client closed the connection.
        """
        try:
            done = await unless_left(receive, self._wait())
            if done and self._next is not None:
                self._next.result()
        except BaseException:
            await self._close()
            raise
        return self

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002
        try:
            await unless_left(receive, self._send_all(send))
        except ClientLeft:
            pass
        finally:
            await self._close()

    async def _send_all(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        while True:
            data = await self._take() if await self._wait() else KEEP_ALIVE
            await send({"type": "http.response.body", "body": data or b"", "more_body": data is not None})
            if data is None:
                return

    async def _wait(self) -> bool:
        if self._next is None:
            self._next = asyncio.create_task(self._advance())
        done, _ = await asyncio.wait({self._next}, timeout=self._keep_alive)
        return bool(done)

    async def _advance(self) -> bytes | None:
        return await anext(self._frames, None)

    async def _take(self) -> bytes | None:
        task, self._next = self._next, None
        assert task is not None
        try:
            return task.result()
        except Exception as error:
            await self._frames.aclose()
            return b"data: " + as_api_error(error).body() + b"\n\n"

    async def _close(self) -> None:
        if self._next is not None:
            self._next.cancel()
            await asyncio.gather(self._next, return_exceptions=True)
        await self._frames.aclose()
