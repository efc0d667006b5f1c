"""The exception tree.

HeadwayError
├── ConfigError          a wrong configuration; raised at start, names the key
├── ModelRefused         the model cannot be served correctly; says why
├── RequestError         a request that cannot be served; `field` names the culprit → HTTP 400
│   └── ContextTooLong   prompt + max_tokens do not fit → HTTP 400
├── QueueFull            too many queued requests or tokens; `retry_after` seconds → HTTP 429
├── RequestFailed        this one request broke inside the engine → HTTP 500
└── EngineDead           the engine process has ended or hangs → HTTP 503
"""

import re
from collections.abc import Mapping


class HeadwayError(Exception):
    """Base of every error that Headway raises on purpose."""


class ConfigError(HeadwayError):
    """A configuration that cannot be served."""


class ModelRefused(HeadwayError):
    """A model that does not fit the engine, with the reason."""


class RequestError(HeadwayError):
    """A request that cannot be served.

    Args:
        message: what is wrong and what is allowed.
        field: the request field to blame, or None.
    """

    def __init__(self, message: str, field: str | None = None) -> None:
        super().__init__(message)
        self.field = field


def renamed(error: RequestError, fields: Mapping[str, str]) -> RequestError:
    """The same error in the words of a request that calls some fields otherwise."""
    field = error.field
    if field is None or field not in fields:
        return error
    return type(error)(re.sub(rf"^{field}\b", fields[field], str(error)), fields[field])


class ContextTooLong(RequestError):
    """Prompt and answer together exceed what the server can hold."""


class QueueFull(HeadwayError):
    """The queue limit is reached.

    Args:
        message: which limit, and its value.
        retry_after: seconds after which a place is likely.
    """

    def __init__(self, message: str, retry_after: int) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class RequestFailed(HeadwayError):
    """One request failed inside the engine; the loop goes on."""


class EngineDead(HeadwayError):
    """The engine has ended, or has not answered within the watchdog's time."""
