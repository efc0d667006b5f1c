"""The engine's loop: take messages, step, send events, for as long as the engine is wanted."""

import time
from typing import Protocol

from headway.engine.core import Engine
from headway.engine.errors import EngineDead
from headway.engine.failures import to_event
from headway.engine.messages import Abort, FromEngine, Heartbeat, Shutdown, Submit, ToEngine

HEARTBEAT_SECONDS = 0.5


class Link(Protocol):
    """How messages reach the engine and leave it."""

    def receive(self, timeout: float) -> list[ToEngine]:
        """The messages that are there, waiting up to `timeout` seconds for a first one."""
        ...

    def send(self, messages: list[FromEngine]) -> None:
        """Pass on messages without waiting for their readers."""
        ...


def serve(engine: Engine, link: Link) -> None:
    """Run the engine until it is told to shut down.

    Raises:
        EngineDead: the accelerator is lost.
        RuntimeError: pages are still in use although no request is left.
    """
    pulse = _Pulse(engine, link)
    while True:
        for message in link.receive(0.0 if engine.busy else HEARTBEAT_SECONDS):
            if isinstance(message, Shutdown):
                return
            if isinstance(message, Abort):
                if (last := engine.abort(message.request_id)) is not None:
                    link.send([last])
            else:
                _submit(engine, message, link)
                pulse.beat()  # a router looks at prompts as they come: many take longer than a step
        if engine.busy:
            link.send(list(engine.step()))
        elif engine.stats().pages_used:
            raise RuntimeError("pages are in use although no request is left")
        pulse.beat()


class _Pulse:
    """The engine's heartbeats, no two of them closer than `HEARTBEAT_SECONDS`."""

    def __init__(self, engine: Engine, link: Link) -> None:
        self._engine, self._link = engine, link
        self._next = 0.0

    def beat(self) -> None:
        """Send one if it is time for it."""
        if time.monotonic() >= self._next:
            self._link.send([Heartbeat(self._engine.stats())])
            self._next = time.monotonic() + HEARTBEAT_SECONDS


def _submit(engine: Engine, submit: Submit, link: Link) -> None:
    try:
        engine.submit(submit)
    except EngineDead:
        raise
    except Exception as error:  # whatever a request holds, it ends that request only
        link.send([to_event(submit.request_id, error)])
