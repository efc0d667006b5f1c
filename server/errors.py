"""Errors in OpenAI's form: what the engine raises, and what HTTP adds to it."""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel
from starlette.exceptions import HTTPException

from headway.engine.errors import ContextTooLong, EngineDead, QueueFull, RequestError, RequestFailed

log = logging.getLogger("headway.server")


class ErrorDetail(BaseModel):
    """OpenAI's error object; `param` is the field to blame."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(BaseModel):
    """The body of every answer that is no success."""

    error: ErrorDetail


class ApiError(HTTPException):
    """An error with its HTTP status and OpenAI's fields."""

    def __init__(
        self,
        status_code: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(status_code, message, headers)
        self.param = param
        self.code = code

    def body(self) -> bytes:
        """The error as JSON."""
        detail = {
            "message": self.detail,
            "type": _kind(self.status_code),
            "param": self.param,
            "code": self.code,
        }
        return msgspec.json.encode({"error": detail})

    def response(self) -> Response:
        """The error as an answer."""
        return Response(self.body(), self.status_code, self.headers, media_type="application/json")


class ClientLeft(Exception):
    """The client closed the connection; nobody reads the answer."""


def as_api_error(error: Exception) -> ApiError:
    """Map any exception. Unforeseen ones are logged and tell the client nothing of the inside."""
    match error:
        case ApiError():
            return error
        case ContextTooLong():
            return ApiError(400, str(error), param=error.field, code="context_length_exceeded")
        case RequestError():
            return ApiError(400, str(error), param=error.field)
        case QueueFull():
            headers = {"Retry-After": str(max(1, error.retry_after))}
            return ApiError(429, str(error), code="queue_full", headers=headers)
        case RequestFailed():
            log.error("request failed: %s", error)
            return ApiError(500, str(error), code="request_failed")
        case EngineDead():
            return ApiError(503, str(error), code="engine_dead")
        case RequestValidationError():
            return _validation_error(error.errors())
        case HTTPException():
            return ApiError(error.status_code, error.detail, headers=error.headers)
    log.error("request failed", exc_info=error)
    return ApiError(500, "the request failed inside the server", code="request_failed")


def install(app: FastAPI) -> None:
    """Let every exception of `app` become an OpenAI error."""

    async def handle(_: Request, error: Exception) -> Response:
        return as_api_error(error).response()

    async def handle_left(_request: Request, _error: Exception) -> Response:
        return Response(status_code=499)

    app.add_exception_handler(HTTPException, handle)
    app.add_exception_handler(Exception, handle)
    app.add_exception_handler(ClientLeft, handle_left)


def _kind(status: int) -> str:
    if status >= 500:
        return "server_error"
    return {401: "authentication_error", 429: "rate_limit_error"}.get(status, "invalid_request_error")


def _validation_error(errors: Sequence[Any]) -> ApiError:
    # Of a union's complaints the one that reached deepest is about what the client meant.
    worst = max(errors, key=lambda error: len(error["loc"]))
    where = ".".join(str(part) for part in worst["loc"][1:] if not _is_branch(part)) or None
    message = worst["msg"].removeprefix("Value error, ")
    return ApiError(400, f"{where}: {message}" if where else message, param=where)


def _is_branch(part: str | int) -> bool:
    return isinstance(part, str) and (part in {"str", "constrained-str"} or "[" in part)
