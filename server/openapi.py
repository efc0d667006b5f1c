"""What the OpenAPI document says of errors and streams."""

from typing import Any

from fastapi import FastAPI
from pydantic import BaseModel

from headway.server.errors import ErrorBody

Responses = dict[int | str, dict[str, Any]]

_TEXTS = {
    400: "A field is wrong; `param` names it.",
    401: "No valid API key.",
    404: "No such model.",
    413: "The body is too long.",
    415: "The body is not application/json.",
    429: "The queue is full.",
    500: "This request failed.",
    503: "The engine has ended, or the server is shutting down.",
}
_RETRY_AFTER = {
    "Retry-After": {"description": "Seconds until a place is likely.", "schema": {"type": "string"}}
}


def errors(*codes: int) -> Responses:
    """Documentation of error answers; 401 is always among them."""
    result: Responses = {code: {"model": ErrorBody, "description": _TEXTS[code]} for code in (*codes, 401)}
    if 429 in result:
        result[429]["headers"] = _RETRY_AFTER
    return result


BODY_ERRORS = (400, 404, 413, 415, 500, 503)


# Before OpenAPI 3.2, which has a key of its own for it, the schema of a stream is that of each event.
_STREAM = {
    "schema": {
        "type": "object",
        "description": "One server-sent event; the last has the data `[DONE]`.",
        "properties": {"data": {"type": "string"}, "event": {"type": "string"}},
        "required": ["data"],
    }
}


def generation_responses(whole: type[BaseModel]) -> Responses:
    """Documentation of a route that generates."""
    success = {"model": whole, "description": "The answer.", "content": {"text/event-stream": _STREAM}}
    return {200: success, **errors(*BODY_ERRORS, 429)}


def install(app: FastAPI, options: dict[str, Any]) -> None:
    """Say in the document what FastAPI cannot know.

    That is `options`, the schema of the field `headway`, which follows the server's configuration; and that
    Headway never answers with FastAPI's own form of validation errors.
    """
    generate = app.openapi

    def corrected() -> dict[str, Any]:
        if app.openapi_schema is None:
            document = generate()
            for path in document["paths"].values():
                for operation in path.values():
                    operation["responses"].pop("422", None)
            schemas = document["components"]["schemas"]
            for name in ("HTTPValidationError", "ValidationError"):
                schemas.pop(name, None)
            for body in ("ChatRequest", "CompletionRequest"):
                schemas[body]["properties"]["headway"] = options
        return generate()

    app.openapi = corrected  # type: ignore[method-assign]
