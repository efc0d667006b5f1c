"""Clients of an application around a scripted engine."""

import asyncio
import functools
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from headway.engine.config import EngineConfig, ModelConfig
from headway.engine.recipe import RecipeConfig
from headway.server.app import create_app
from headway.server.settings import ServerConfig, Settings
from headway.server.tokenizer import Tokenizer

from .scripted_engine import ScriptedEngine


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    return Tokenizer.load(ModelConfig())


@pytest.fixture
def engine(tokenizer: Tokenizer) -> ScriptedEngine:
    return ScriptedEngine(tokenizer)


@pytest.fixture
def make_app(engine: ScriptedEngine, tokenizer: Tokenizer) -> Callable[..., FastAPI]:
    def make(recipe: Any = None, **server: Any) -> FastAPI:
        config = EngineConfig(recipe=RecipeConfig.model_validate(recipe or {}))
        return create_app(Settings(config, ServerConfig(**server)), engine, tokenizer)

    return make


@pytest.fixture
def app(make_app: Callable[..., FastAPI]) -> FastAPI:
    return make_app()


@pytest.fixture
def connect() -> Callable[[FastAPI], httpx.AsyncClient]:
    def client(app: FastAPI) -> httpx.AsyncClient:
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        return httpx.AsyncClient(transport=transport, base_url="http://headway")

    return client


@pytest.fixture
def send_to(connect: Callable[[FastAPI], httpx.AsyncClient]) -> Callable[..., httpx.Response]:
    """One POST with a JSON body to an application."""

    def send(app: FastAPI, path: str, body: Any = None, **options: Any) -> httpx.Response:
        async def run() -> httpx.Response:
            async with connect(app) as client:
                given = {"json": body} if body is not None else {}
                return await client.post(path, **given, **options)

        return asyncio.run(run())

    return send


@pytest.fixture
def post(app: FastAPI, send_to: Callable[..., httpx.Response]) -> Callable[..., httpx.Response]:
    """One POST with a JSON body to the application."""
    return functools.partial(send_to, app)
