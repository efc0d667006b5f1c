"""What a request may say under `headway`: which decode method serves it, as far as the server offers it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from headway.engine.config_section import nearest
from headway.engine.errors import RequestError
from headway.engine.recipe import FIELD, Offer
from headway.engine.selection.settings import DecodeSettings, of_requests

Choice = dict[str, str | int | float | bool | None]

KEYS = ("decode",)


@dataclass(frozen=True, slots=True)
class Decoding:
    """How a request's tokens are decoded.

    Attributes:
        choice: what the engine is told; None: nothing, its own recipe serves.
        method: the name to report in `usage.headway`; None: no report, since nothing but dense is served.
    """

    choice: Choice | None
    method: str | None


def decoding(options: Mapping[str, Any] | None, offer: Offer) -> Decoding:
    """Check what a request says under `headway`.

    Raises:
        RequestError: an unknown key, or a method or setting that is wrong or not offered; names the field.
    """
    for key in options or ():
        if key not in KEYS:
            field = f"headway.{key[:80]}"
            raise RequestError(f"{field}: unknown key; did you mean {nearest(key[:80], KEYS)}", field)
    given = (options or {}).get("decode")
    if given is None:
        return Decoding(None, None if offer.default.method == "dense" else offer.default.method)
    if not isinstance(given, Mapping):
        raise RequestError(f"{FIELD}: must be an object with a method and its settings", FIELD)
    chosen = {key: value for key, value in given.items() if value is not None}
    settings = offer.settings(chosen)
    # From the settings and not as it came: a whole number may stand for a fraction.
    choice = {key: getattr(settings, key) for key in chosen}
    return Decoding(choice, settings.method)


def options_schema(offer: Offer) -> dict[str, Any]:
    """JSON schema of what this server accepts under `headway`."""
    variants = [_method_schema(offer.of(name), offer) for name in offer.methods]
    decode = {
        "description": "Method and settings of decode steps, for this request; what is left out is as the "
        "server serves it. `headway recipes` explains the methods.",
        "anyOf": [*variants, {"type": "null"}],
    }
    options = {
        "title": "HeadwayOptions",
        "type": "object",
        "properties": {"decode": decode},
        "additionalProperties": False,
    }
    return {"anyOf": [options, {"type": "null"}]}


def _method_schema(settings: DecodeSettings, offer: Offer) -> dict[str, Any]:
    schema = type(settings).model_json_schema()
    properties: dict[str, Any] = {"method": {"const": settings.method}}
    for name in of_requests(type(settings)):
        if name != "method":
            accepted = {key: value for key, value in schema["properties"][name].items() if key != "default"}
            if name == "budget":
                accepted["maximum"] = offer.max_budget
            properties[name] = {"anyOf": [accepted, {"type": "null"}], "default": getattr(settings, name)}
    return {
        "title": settings.method,
        "type": "object",
        "properties": properties,
        "required": [] if settings.method == offer.default.method else ["method"],
        "additionalProperties": False,
    }
