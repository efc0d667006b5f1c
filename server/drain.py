"""Graceful end: no new work, but what runs may finish."""

import asyncio

from starlette.types import ASGIApp, Receive, Scope, Send

from headway.server.errors import ApiError


class Drain:
    """Knows whether the server is ending, and how many requests still run."""

    def __init__(self) -> None:
        self.started = False
        self._running = 0
        self._idle = asyncio.Event()
        self._idle.set()

    def start(self) -> None:
        """Take no new requests from now on."""
        self.started = True

    def enter(self) -> None:
        """A request begins."""
        self._running += 1
        self._idle.clear()

    def leave(self) -> None:
        """A request has ended."""
        self._running -= 1
        if not self._running:
            self._idle.set()

    async def idle(self, seconds: float) -> bool:
        """Wait until nothing runs; False if that takes longer than `seconds`."""
        try:
            await asyncio.wait_for(self._idle.wait(), seconds)
        except TimeoutError:
            return False
        return True


class CountWork:
    """ASGI middleware that counts POST requests, and answers 503 to new ones while draining."""

    def __init__(self, app: ASGIApp, drain: Drain) -> None:
        self.app = app
        self.drain = drain

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "POST":
            await self.app(scope, receive, send)
            return
        if self.drain.started:
            error = ApiError(
                503, "the server is shutting down", code="draining", headers={"Retry-After": "5"}
            )
            await error.response()(scope, receive, send)
            return
        self.drain.enter()
        try:
            await self.app(scope, receive, send)
        finally:
            self.drain.leave()
