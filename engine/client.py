"""EngineClient: how the server, the CLI and tests talk to an engine, in this process or in its own."""

from collections.abc import AsyncGenerator
from typing import Protocol

from headway.engine.messages import ModelInfo, RequestEvent, Stats, Submit


class EngineClient(Protocol):
    """One interface, two implementations: `InProcessClient` and `ProcessClient`."""

    info: ModelInfo

    def generate(self, submit: Submit) -> AsyncGenerator[RequestEvent, None]:
        """Submit a request and yield its events until it ends (write it as an async generator).

        Closing the iterator early, when a client has left, aborts the request.

        Raises:
            RequestError, QueueFull, RequestFailed, EngineDead: on the first or any later event.
        """
        ...

    def abort(self, request_id: str) -> None:
        """End a request whose events are being read, when a stop string has matched: its last event follows.

        Raises:
            EngineDead: nobody is there to end it.
        """
        ...

    def stats(self) -> Stats:
        """The newest counters and gauges; no round trip."""
        ...

    def is_alive(self) -> bool:
        """Whether the engine runs and has shown life within the watchdog's time."""
        ...

    async def close(self) -> None:
        """End the engine; requests still running end with EngineDead."""
        ...
