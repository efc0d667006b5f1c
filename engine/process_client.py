"""ProcessClient: an engine in a process of its own, so that nothing that the server does holds it up."""

import asyncio
import contextlib
import os
import subprocess
import sys
import tempfile
import threading
from contextlib import ExitStack
from pathlib import Path

from headway.engine.config import EngineConfig
from headway.engine.errors import EngineDead, HeadwayError
from headway.engine.failures import error_class
from headway.engine.mailbox_client import MailboxClient
from headway.engine.messages import ModelInfo, Ready, Shutdown, StartFailed, ToEngine
from headway.engine.sockets import ClientEnd

POLL_SECONDS = 0.2
CLOSE_SECONDS = 10.0

# OpenMP threads that spin for long between two operators take the cores from whoever else needs them, and are
# then held up themselves; threads that sleep at once wake too late. About 10 us of spinning.
SPINNING = {"GOMP_SPINCOUNT": "5000"}


class ProcessClient(MailboxClient):
    """An `EngineClient` whose engine is a child process; the constructor returns once the model is loaded.

    Attributes:
        folder: where the sockets are; only this user may enter it.

    Raises:
        ConfigError, ModelRefused: the engine cannot start, with its reason.
        EngineDead: the child ended before it was ready.
    """

    def __init__(self, config: EngineConfig) -> None:
        with ExitStack() as stack:
            # An engine whose client was killed removes the folder itself.
            folder = tempfile.TemporaryDirectory(prefix="headway-", ignore_cleanup_errors=True)
            self.folder = Path(stack.enter_context(folder))
            self._link = ClientEnd(self.folder)
            stack.callback(self._link.close)
            self._child = _start(self.folder, config)
            stack.callback(self._child.wait)
            stack.callback(self._child.kill)
            info = self._await_ready()
            self._remains = stack.pop_all()
        super().__init__(info, config.watchdog_seconds)
        self._closing = threading.Event()
        self._reader = threading.Thread(target=self._read, name="headway-events", daemon=True)
        self._reader.start()

    @property
    def pid(self) -> int:
        """The engine's process."""
        return self._child.pid

    async def close(self) -> None:
        """End the child after its current step, or by force; requests still running end with EngineDead."""
        await asyncio.to_thread(self._close)

    def _close(self) -> None:
        if self._closing.is_set():
            return
        self._closing.set()
        with contextlib.suppress(EngineDead, subprocess.TimeoutExpired):
            self._send(Shutdown())
            self._child.wait(CLOSE_SECONDS)
        self._child.kill()
        self._reader.join()
        self._remains.close()

    def _send(self, message: ToEngine) -> None:
        if self._ended is not None:
            raise EngineDead(self._ended)
        self._link.send(message)

    def _await_ready(self) -> ModelInfo:
        while True:
            for message in self._link.receive(POLL_SECONDS):
                if isinstance(message, Ready):
                    return message.info
                if isinstance(message, StartFailed):
                    raise _start_error(message)
            if (code := self._child.poll()) is not None:
                raise EngineDead(f"the engine's process ended while starting, with code {code}")

    def _read(self) -> None:
        """Hand on what the engine sends, until its process has ended and all is read."""
        while True:
            if messages := self._link.receive(POLL_SECONDS):
                self._take(messages)
            elif (code := self._child.poll()) is not None:
                closed = self._closing.is_set()
                self._end(
                    "the engine was closed" if closed else f"the engine's process ended with code {code}"
                )
                return
            self._watch()


def _start(folder: Path, config: EngineConfig) -> "subprocess.Popen[bytes]":
    # -P: the working directory is no place to import from. A session of its own: Ctrl-C is for the server,
    # which ends the engine once its requests are done.
    command = [sys.executable, "-P", "-m", "headway.engine.process_main", str(folder), str(os.getpid())]
    environment = {**SPINNING, **os.environ}
    child = subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True, env=environment)
    if child.stdin is not None:
        with child.stdin as stdin:
            stdin.write(config.model_dump_json().encode())
    return child


def _start_error(message: StartFailed) -> HeadwayError:
    kind = error_class(message.kind)
    if kind.__name__ != message.kind:
        return EngineDead(f"the engine could not start: {message.kind}: {message.message}")
    return kind(message.message)
