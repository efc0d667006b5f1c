"""create_app: the ASGI application around one engine."""

from fastapi import FastAPI
from fastapi.middleware.cors import CORSMiddleware

import headway
from headway.engine.client import EngineClient
from headway.server import chat, completions, errors, openapi, routes
from headway.server.auth import RequireKey
from headway.server.body_limit import LimitBody
from headway.server.drain import CountWork
from headway.server.headway_options import options_schema
from headway.server.metrics import CountAnswers
from headway.server.service import Service
from headway.server.settings import Settings
from headway.server.tokenizer import Tokenizer


def create_app(settings: Settings, engine: EngineClient, tokenizer: Tokenizer) -> FastAPI:
    """Build the application, which owns neither engine nor tokenizer. `app.state.service` is its Service."""
    service = Service(settings, engine, tokenizer)
    app = FastAPI(title="Headway", version=headway.__version__, redirect_slashes=False)
    app.state.service = service
    for router in (chat.router, completions.router, routes.router):
        app.include_router(router)
    errors.install(app)
    openapi.install(app, options_schema(service.offers))
    # The last one added is the outermost.
    app.add_middleware(CountWork, drain=service.drain)
    app.add_middleware(LimitBody, max_bytes=settings.server.max_body_bytes)
    if settings.server.api_keys:
        app.add_middleware(RequireKey, keys=settings.server.api_keys)
    app.add_middleware(CountAnswers, metrics=service.metrics)
    if settings.server.cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=settings.server.cors_origins,
            allow_methods=["GET", "POST"],
            allow_headers=["*"],
        )
    return app
