"""Strict JSON bodies: what two readers could understand differently is refused."""

import asyncio
import json
import math
from collections import Counter
from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import Request, Response
from fastapi.routing import APIRoute

from headway.server.errors import ApiError, ClientLeft, as_api_error

MAX_DEPTH = 64
"""Levels of nesting; real requests use fewer than ten."""

_LARGE = 64 * 1024


class JsonRoute(APIRoute):
    """A route that reads its body with `decode`, and whose errors are all `ApiError`s."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """FastAPI's handler around a request with a strict `json()`."""
        handle = super().get_route_handler()

        async def strict(request: Request) -> Response:
            if self.body_field is not None:
                kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
                # Also what keeps a foreign web page from posting here without asking first.
                if kind != "application/json":
                    raise ApiError(415, "the Content-Type must be application/json")
            try:
                return await handle(_StrictRequest(request.scope, request.receive))
            except ClientLeft:
                raise
            except Exception as error:
                raise as_api_error(error) from error

        return strict


class _StrictRequest(Request):
    async def json(self) -> Any:
        body = await self.body()
        return decode(body) if len(body) < _LARGE else await asyncio.to_thread(decode, body)


def decode(body: bytes) -> Any:
    """Parse a JSON object.

    Raises:
        ApiError: 400 for invalid UTF-8 or JSON, NaN, infinite numbers, repeated keys, NUL characters, lone
            surrogates, and nesting deeper than MAX_DEPTH.
    """
    try:
        value = json.loads(
            body.decode("utf-8"),
            object_pairs_hook=_object,
            parse_constant=_no_constant,
            parse_float=_finite,
        )
    except UnicodeDecodeError as error:
        raise ApiError(400, f"the body is not valid UTF-8: {error.reason} at byte {error.start}") from error
    except RecursionError as error:
        raise ApiError(400, f"the body is nested deeper than {MAX_DEPTH} levels") from error
    except ValueError as error:
        raise ApiError(400, f"the body is not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise ApiError(400, "the body must be a JSON object")
    _check_text_and_depth(value)
    return value


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) < len(pairs):
        [(twice, _)] = Counter(key for key, _ in pairs).most_common(1)
        raise ValueError(f"the key {twice[:80]!r} is there more than once")
    return result


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def _finite(digits: str) -> float:
    number = float(digits)
    if not math.isfinite(number):
        raise ValueError("a number is too large")
    return number


def _check_text_and_depth(value: Any) -> None:
    level = [value]
    for _ in range(MAX_DEPTH):
        inner: list[Any] = []
        for item in level:
            if isinstance(item, dict):
                inner += item.keys()
                inner += item.values()
            elif isinstance(item, list):
                inner += item
            elif isinstance(item, str):
                _check_text(item)
        if not inner:
            return
        level = inner
    raise ApiError(400, f"the body is nested deeper than {MAX_DEPTH} levels")


def _check_text(text: str) -> None:
    if "\0" in text:
        raise ApiError(400, "the body holds a NUL character")
    if not text.isascii():
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise ApiError(400, "the body holds a lone surrogate, which is no character") from error
