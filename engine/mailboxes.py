"""Mailboxes: events from the engine's thread to the event loops in which requests wait for them."""

import asyncio
import contextlib
import threading
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field

from headway.engine.errors import EngineDead, RequestError
from headway.engine.messages import RequestEvent

Letter = RequestEvent | EngineDead


@dataclass(frozen=True, slots=True)
class Mailbox:
    """The events of one request that its reader has not taken yet; a slow reader blocks nobody else."""

    loop: asyncio.AbstractEventLoop
    letters: "asyncio.Queue[Letter]" = field(default_factory=asyncio.Queue)


class Mailboxes:
    """One mailbox for each open request; every method may be called from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._boxes: dict[str, Mailbox] = {}

    def open(self, request_id: str) -> Mailbox:
        """A mailbox that is read in the running event loop.

        Raises:
            RequestError: the id is in use.
        """
        box = Mailbox(asyncio.get_running_loop())
        with self._lock:
            if self._boxes.setdefault(request_id, box) is not box:
                raise RequestError("a request with this id is running", "request_id")
        return box

    def close(self, request_id: str) -> None:
        """Drop what is left and what still comes."""
        with self._lock:
            del self._boxes[request_id]

    def deliver(self, events: Iterable[RequestEvent]) -> None:
        """Put events into their requests' mailboxes."""
        by_loop: dict[asyncio.AbstractEventLoop, list[tuple[Mailbox, Letter]]] = defaultdict(list)
        with self._lock:
            for event in events:
                if box := self._boxes.get(event.request_id):
                    by_loop[box.loop].append((box, event))
        _post(by_loop)

    def end_all(self, reason: str) -> None:
        """Tell every open request that the engine is dead."""
        by_loop: dict[asyncio.AbstractEventLoop, list[tuple[Mailbox, Letter]]] = defaultdict(list)
        with self._lock:
            for box in self._boxes.values():
                by_loop[box.loop].append((box, EngineDead(reason)))
        _post(by_loop)


def _post(by_loop: dict[asyncio.AbstractEventLoop, list[tuple[Mailbox, Letter]]]) -> None:
    for loop, letters in by_loop.items():
        with contextlib.suppress(RuntimeError):  # that loop has ended, and its readers with it
            loop.call_soon_threadsafe(_put, letters)


def _put(letters: list[tuple[Mailbox, Letter]]) -> None:
    for box, letter in letters:
        box.letters.put_nowait(letter)
