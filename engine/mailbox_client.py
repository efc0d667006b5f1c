"""What both clients share: requests over mailboxes, and signs of life."""

import contextlib
import time
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Iterable

from headway.engine.errors import EngineDead
from headway.engine.failures import to_error
from headway.engine.mailboxes import Mailboxes
from headway.engine.messages import (
    Abort,
    Failed,
    FromEngine,
    Heartbeat,
    ModelInfo,
    Progress,
    RequestEvent,
    Stats,
    Submit,
    ToEngine,
    Tokens,
)


class MailboxClient(ABC):
    """An `EngineClient` whose engine works in the background; see there for the methods' contracts.

    Args:
        info: what the engine that has just started says of its model.
        watchdog_seconds: silence of the engine after which it counts as hanging.
    """

    def __init__(self, info: ModelInfo, watchdog_seconds: float) -> None:
        self.info = info
        self._mailboxes = Mailboxes()
        self._watchdog_seconds = watchdog_seconds
        self._stats = Stats()
        self._last_life = time.monotonic()
        self._ended: str | None = None

    @abstractmethod
    def _send(self, message: ToEngine) -> None:
        """Pass a message to the engine, without waiting.

        Raises:
            RequestError: the message cannot be passed on.
            EngineDead: nobody is there to take it.
        """

    async def generate(self, submit: Submit) -> AsyncGenerator[RequestEvent, None]:
        """Submit a request and yield its events until it ends."""
        box = self._mailboxes.open(submit.request_id)
        running = False
        try:
            if (problem := self._problem()) is not None:
                raise EngineDead(problem)
            self._send(submit)
            running = True
            while running:
                event = await box.letters.get()
                if isinstance(event, EngineDead):
                    raise event
                running = not (isinstance(event, Failed) or _is_last(event))
                if isinstance(event, Failed):
                    raise to_error(event)
                yield event
        finally:
            self._mailboxes.close(submit.request_id)
            if running:
                with contextlib.suppress(EngineDead):
                    self._send(Abort(submit.request_id))

    def abort(self, request_id: str) -> None:
        """End a request whose events are being read: its last event follows."""
        self._send(Abort(request_id))

    def stats(self) -> Stats:
        """The newest counters and gauges; no round trip."""
        return self._stats

    def is_alive(self) -> bool:
        """Whether the engine runs and has shown life within the watchdog's time."""
        return self._problem() is None

    def _problem(self) -> str | None:
        if self._ended is None and time.monotonic() - self._last_life > self._watchdog_seconds:
            return f"the engine has shown no sign of life for {self._watchdog_seconds:g} s"
        return self._ended

    def _take(self, messages: Iterable[FromEngine]) -> None:
        """Everything that the engine sends passes here, in the background thread."""
        self._last_life = time.monotonic()
        events: list[RequestEvent] = []
        for message in messages:
            if isinstance(message, Heartbeat):
                self._stats = message.stats
            elif isinstance(message, Tokens | Progress | Failed):
                events.append(message)
        self._mailboxes.deliver(events)

    def _end(self, reason: str) -> None:
        """The engine is gone for good."""
        self._ended = reason
        self._mailboxes.end_all(reason)

    def _watch(self) -> None:
        """To be called several times within the watchdog's time."""
        if (problem := self._problem()) is not None:
            self._mailboxes.end_all(problem)


def _is_last(event: RequestEvent) -> bool:
    return isinstance(event, Tokens) and event.finish_reason is not None
