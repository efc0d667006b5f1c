"""Errors of one request as events, and back."""

from headway.engine import errors
from headway.engine.errors import HeadwayError, QueueFull, RequestError, RequestFailed
from headway.engine.messages import Failed


def to_event(request_id: str, error: Exception) -> Failed:
    """The event that ends a request with `error`; of an unforeseen one only its class is told."""
    if not isinstance(error, HeadwayError):
        error = RequestFailed(f"the engine failed on this request ({type(error).__name__})")
    return Failed(
        request_id,
        type(error).__name__,
        str(error),
        error.field if isinstance(error, RequestError) else None,
        error.retry_after if isinstance(error, QueueFull) else 0,
    )


def to_error(event: Failed) -> HeadwayError:
    """The error that an event stands for."""
    if event.kind == QueueFull.__name__:
        return QueueFull(event.message, event.retry_after)
    kind = error_class(event.kind)
    return kind(event.message, event.field) if issubclass(kind, RequestError) else kind(event.message)


def error_class(name: str) -> type[HeadwayError]:
    """The class of that name in `headway.engine.errors`; RequestFailed where there is none."""
    kind = getattr(errors, name, None)
    return kind if isinstance(kind, type) and issubclass(kind, HeadwayError) else RequestFailed
