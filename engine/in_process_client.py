"""InProcessClient: an engine in a thread of this process, for the Python API and for tests."""

import asyncio
import logging
import queue
import threading

from headway.engine.build import build
from headway.engine.config import EngineConfig
from headway.engine.core import Engine
from headway.engine.loop import serve
from headway.engine.mailbox_client import MailboxClient
from headway.engine.messages import FromEngine, Shutdown, ToEngine

CLOSE_SECONDS = 30.0

logger = logging.getLogger(__name__)


class InProcessClient(MailboxClient):
    """An `EngineClient` without a process of its own.

    Args:
        config: what to load, and the watchdog's time.
        engine: one that is built already; the client closes it.

    Raises:
        ConfigError, ModelRefused: as `build` does.
    """

    def __init__(self, config: EngineConfig, engine: Engine | None = None) -> None:
        self._engine = engine or build(config)
        super().__init__(self._engine.info, config.watchdog_seconds)
        self._inbox: queue.SimpleQueue[ToEngine] = queue.SimpleQueue()
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="headway-engine", daemon=True)
        self._thread.start()
        threading.Thread(target=self._keep_watch, name="headway-watchdog", daemon=True).start()

    async def close(self) -> None:
        """End the engine after its current step; requests still running end with EngineDead."""
        self._inbox.put(Shutdown())
        await asyncio.to_thread(self._thread.join, CLOSE_SECONDS)

    def receive(self, timeout: float) -> list[ToEngine]:
        """The engine's side of the inbox; see `headway.engine.loop.Link`."""
        messages: list[ToEngine] = []
        try:
            if timeout:
                messages.append(self._inbox.get(timeout=timeout))
            while True:
                messages.append(self._inbox.get_nowait())
        except queue.Empty:
            return messages

    def send(self, messages: list[FromEngine]) -> None:
        """The engine's side of the outbox; see `headway.engine.loop.Link`."""
        self._take(messages)

    def _send(self, message: ToEngine) -> None:
        self._inbox.put(message)

    def _run(self) -> None:
        reason = "the engine was closed"
        try:
            serve(self._engine, self)
        except Exception as error:
            logger.exception("the engine ended")
            reason = f"the engine ended: {error}"
        finally:
            self._end(reason)
            self._stopped.set()
            self._engine.close()

    def _keep_watch(self) -> None:
        while not self._stopped.wait(min(1.0, self._watchdog_seconds / 4)):
            self._watch()
