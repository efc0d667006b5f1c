"""API keys: every route needs one, but /health."""

import hashlib
import hmac
from collections.abc import Sequence

from pydantic import SecretStr
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from headway.server.errors import ApiError

OPEN_PATHS = frozenset({"/health"})


class RequireKey:
    """ASGI middleware that answers 401 unless `Authorization: Bearer` carries a known key."""

    def __init__(self, app: ASGIApp, keys: Sequence[SecretStr]) -> None:
        self.app = app
        self._digests = [_digest(key.get_secret_value().encode()) for key in keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] in OPEN_PATHS or self._known(scope):
            await self.app(scope, receive, send)
            return
        error = ApiError(
            401,
            "a valid API key is needed: Authorization: Bearer YOUR_KEY",
            code="invalid_api_key",
            headers={"WWW-Authenticate": "Bearer"},
        )
        await error.response()(scope, receive, send)

    def _known(self, scope: Scope) -> bool:
        scheme, _, key = Headers(scope=scope).get("authorization", "").partition(" ")
        digest = _digest(key.strip().encode("latin-1"))
        # The sum compares with every key, so that time tells nothing.
        matches = sum(hmac.compare_digest(digest, known) for known in self._digests)
        return scheme.lower() == "bearer" and matches > 0


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()
