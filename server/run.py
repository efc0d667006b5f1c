"""Run the server: engine, tokenizer, application, HTTP, and an orderly end."""

import asyncio
import logging
import socket
from collections.abc import Callable
from types import FrameType

import uvicorn
import uvloop
from rich.console import Console

from headway.engine.client import EngineClient
from headway.engine.errors import ConfigError, EngineDead
from headway.engine.process_client import ProcessClient
from headway.server import banner
from headway.server.app import create_app
from headway.server.drain import Drain
from headway.server.protocol import BoundedHeaders
from headway.server.settings import ServerConfig, Settings
from headway.server.tokenizer import Tokenizer

log = logging.getLogger("headway.server")

_CLOSE_SECONDS = 2
"""What connections get, once draining is over, to notice the end."""

_FAREWELL_SECONDS = 5
"""How long a server whose engine is dead tells its clients so, before it ends and can be started again."""


def run(settings: Settings, console: Console) -> None:
    """Serve until SIGTERM or SIGINT, then let running requests finish; a second signal ends at once.

    Raises:
        ConfigError, ModelRefused: the model cannot be served, or the address cannot be used.
        EngineDead: the engine has ended or hangs.
    """
    logging.basicConfig(format="%(asctime)s %(levelname)s %(name)s: %(message)s", level=logging.INFO)
    logging.getLogger("uvicorn").setLevel(logging.WARNING)
    logging.getLogger("uvicorn.access").setLevel(logging.INFO)
    with _bind(settings.server) as listener:
        with console.status(f"loading {settings.engine.model.name}…"):
            tokenizer = Tokenizer.load(settings.engine.model)
            engine = ProcessClient(settings.engine)
        uvloop.run(_serve(settings, console, listener, tokenizer, engine))


async def _serve(
    settings: Settings, console: Console, listener: socket.socket, tokenizer: Tokenizer, engine: EngineClient
) -> None:
    try:
        app = create_app(settings, engine, tokenizer)
        service = app.state.service

        def announce() -> None:
            port = listener.getsockname()[1]
            embedded = settings.engine.model.name == "needle"
            banner.show(console, engine.info, service.model, service.offers, settings.server, port, embedded)

        config = uvicorn.Config(
            app,
            http=BoundedHeaders,
            ws="none",
            lifespan="off",
            log_config=None,
            server_header=False,
            timeout_graceful_shutdown=_CLOSE_SECONDS,
        )
        server = _DrainingServer(config, service.drain, settings.server.drain_seconds, announce)
        watch = asyncio.create_task(_outlived(engine, server))
        await server.serve(sockets=[listener])
        if not watch.cancel():
            raise EngineDead("the engine has ended or hangs; the server ends with it")
    finally:
        tokenizer.close()
        await engine.close()


async def _outlived(engine: EngineClient, server: uvicorn.Server) -> None:
    """End the server some time after its engine: whoever keeps it running starts both again."""
    while engine.is_alive():
        await asyncio.sleep(1)
    log.error("the engine has ended or hangs; the server ends in %d s", _FAREWELL_SECONDS)
    await asyncio.sleep(_FAREWELL_SECONDS)
    server.should_exit = True


def _bind(config: ServerConfig) -> socket.socket:
    """Take the address before the model is loaded, so that a wrong one is told at once."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            config.host, config.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except OSError as error:
        raise ConfigError(
            f"server.host, server.port: cannot use {config.host}:{config.port}: {error}"
        ) from error
    listener.setblocking(False)
    return listener


class _DrainingServer(uvicorn.Server):
    def __init__(
        self, config: uvicorn.Config, drain: Drain, seconds: float, announce: Callable[[], None]
    ) -> None:
        super().__init__(config)
        self._announce = announce
        self._drain = drain
        self._seconds = seconds
        self._loop = asyncio.get_running_loop()
        self._ending: asyncio.Task[None] | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._announce()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:  # noqa: ARG002 - uvicorn's signature
        if self._drain.started:
            self.should_exit = self.force_exit = True
        else:
            self._drain.start()
            self._loop.call_soon_threadsafe(self._begin)

    def _begin(self) -> None:
        self._ending = asyncio.create_task(self._end())

    async def _end(self) -> None:
        await self._drain.idle(self._seconds)
        self.should_exit = True
