"""The two ends of the connection between a client and its engine's process: ZeroMQ over Unix sockets.

Both sockets lie in a folder that only this user may enter. Messages are msgpack, decoded into declared types.
"""

import threading
from pathlib import Path

import msgspec
import zmq

from headway.engine.errors import ConfigError, EngineDead, RequestError
from headway.engine.failures import to_event
from headway.engine.messages import FromEngine, ToEngine

LONGEST_ADDRESS = 100
SEND_MILLISECONDS = 200
LINGER_MILLISECONDS = 2000


class ClientEnd:
    """Sends to the engine from any thread, receives in one.

    Raises:
        ConfigError: the folder's path is too long for a socket.
    """

    def __init__(self, folder: Path) -> None:
        if len(str(folder)) > LONGEST_ADDRESS:
            raise ConfigError(f"the path of {folder} is too long for a socket; set TMPDIR to a shorter one")
        self._context = zmq.Context()
        self._lock = threading.Lock()
        self._requests = self._context.socket(zmq.PUSH)
        self._requests.set_hwm(0)
        self._requests.sndtimeo = SEND_MILLISECONDS
        self._requests.bind(f"ipc://{folder}/requests")
        self._events = self._context.socket(zmq.PULL)
        self._events.set_hwm(0)
        self._events.bind(f"ipc://{folder}/events")
        self._decoder = msgspec.msgpack.Decoder(list[FromEngine])

    def send(self, message: ToEngine) -> None:
        """Pass one message on.

        Raises:
            RequestError: it holds a value that has no form in msgpack, such as a number beyond 64 bits.
            EngineDead: nobody takes it.
        """
        try:
            frame = msgspec.msgpack.encode(message)
        except (TypeError, ValueError, OverflowError) as error:
            raise RequestError(f"the request cannot be passed on: {error}") from error
        try:
            with self._lock:
                self._requests.send(frame)
        except zmq.Again as error:
            raise EngineDead("the engine's process takes no requests") from error

    def receive(self, timeout: float) -> list[FromEngine]:
        """What the engine sent at once, waiting up to `timeout` seconds; empty if nothing came."""
        if not self._events.poll(round(timeout * 1000)):
            return []
        return self._decoder.decode(self._events.recv())

    def close(self) -> None:
        """Drop the sockets, and messages not yet taken."""
        self._context.destroy(linger=0)


class EngineEnd:
    """The `Link` of an engine in its own process; see `headway.engine.loop`."""

    def __init__(self, folder: Path) -> None:
        self._context = zmq.Context()
        self._requests = self._context.socket(zmq.PULL)
        self._requests.set_hwm(0)
        self._requests.connect(f"ipc://{folder}/requests")
        self._events = self._context.socket(zmq.PUSH)
        self._events.set_hwm(0)
        self._events.connect(f"ipc://{folder}/events")
        self._decoder = msgspec.msgpack.Decoder(ToEngine)

    def receive(self, timeout: float) -> list[ToEngine]:
        """The messages that are there, waiting up to `timeout` seconds for a first one.

        A message of a wrong form ends the request that it speaks of.
        """
        messages: list[ToEngine] = []
        wait = round(timeout * 1000)
        while self._requests.poll(wait):
            frame = self._requests.recv()
            try:
                messages.append(self._decoder.decode(frame))
            except msgspec.ValidationError as error:
                wrong = RequestError(f"the request has a wrong form: {error}")
                self.send([to_event(msgspec.msgpack.decode(frame)["request_id"], wrong)])
            wait = 0
        return messages

    def send(self, messages: list[FromEngine]) -> None:
        """Messages to the client, in one frame."""
        if messages:
            self._events.send(msgspec.msgpack.encode(messages))

    def close(self) -> None:
        """Drop the sockets once the client has had time to take the last messages."""
        self._context.destroy(linger=LINGER_MILLISECONDS)
