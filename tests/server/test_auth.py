"""API keys."""

import asyncio
from collections.abc import Callable

import httpx
import pytest
from fastapi import FastAPI

Connect = Callable[[FastAPI], httpx.AsyncClient]
KEYS = ["first-key", "second-key"]


def status(connect: Connect, app: FastAPI, method: str, path: str, headers: dict[str, str]) -> httpx.Response:
    async def run() -> httpx.Response:
        async with connect(app) as client:
            return await client.request(method, path, headers=headers, json={"prompt": "a", "tokens": [5]})

    return asyncio.run(run())


def test_every_route_but_health_needs_a_key(make_app: Callable[..., FastAPI], connect: Connect) -> None:
    app = make_app(api_keys=KEYS)
    paths = [(method.upper(), path) for path, item in app.openapi()["paths"].items() for method in item]
    assert ("POST", "/v1/chat/completions") in paths
    extra = [
        ("GET", "/docs"),
        ("GET", "/openapi.json"),
        ("GET", "/nothing"),
        ("POST", "/health/"),
        ("GET", "//health"),
    ]
    for method, path in [*paths, *extra]:
        answer = status(connect, app, method, path.replace("{model}", "needle"), {})
        if path == "/health":
            assert answer.status_code == 200
            continue
        assert answer.status_code == 401, path
        assert answer.json()["error"]["code"] == "invalid_api_key"
        assert answer.headers["www-authenticate"] == "Bearer"


@pytest.mark.parametrize(
    ("header", "known"),
    [
        ("Bearer first-key", True),
        ("bearer second-key", True),
        ("Bearer first-ke", False),
        ("Bearer first-keyy", False),
        ("Bearer ", False),
        ("Bearer", False),
        ("Basic first-key", False),
        ("first-key", False),
        ("Bearer first-key,second-key", False),
        ("Bearer fürst", False),
    ],
)
def test_keys(header: str, known: bool, make_app: Callable[..., FastAPI], connect: Connect) -> None:
    headers = {"Authorization": header.encode("latin-1")}
    answer = status(connect, make_app(api_keys=KEYS), "GET", "/v1/models", headers)  # type: ignore[arg-type]
    assert answer.status_code == (200 if known else 401)


def test_no_keys_means_open(app: FastAPI, connect: Connect) -> None:
    assert status(connect, app, "GET", "/v1/models", {}).status_code == 200


def test_browsers_are_let_in_by_origin_only(make_app: Callable[..., FastAPI], connect: Connect) -> None:
    headers = {"Origin": "https://good.example", "Access-Control-Request-Method": "POST"}
    closed = status(connect, make_app(), "OPTIONS", "/v1/completions", headers)
    assert "access-control-allow-origin" not in closed.headers
    app = make_app(cors_origins=["https://good.example"], api_keys=KEYS)
    allowed = status(connect, app, "OPTIONS", "/v1/completions", headers)
    assert allowed.headers["access-control-allow-origin"] == "https://good.example"
    refused = status(connect, app, "OPTIONS", "/v1/completions", headers | {"Origin": "https://bad.example"})
    assert "access-control-allow-origin" not in refused.headers
