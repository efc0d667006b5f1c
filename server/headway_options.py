"""What a request may say under `headway`: which methods serve it, as far as the server offers them."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from headway.engine.config_section import nearest
from headway.engine.errors import RequestError
from headway.engine.messages import Choice
from headway.engine.offer import Offer
from headway.engine.offers import Offers
from headway.engine.selection.settings import MethodSettings, of_requests

KEYS = ("decode", "prefill")


@dataclass(frozen=True, slots=True)
class Wish:
    """What a request says of one kind of method.

    Attributes:
        choice: what the engine is told; None: nothing, its own recipe serves.
        method: the name to report in `usage.headway`; None: no report, since nothing but dense is served.
    """

    choice: Choice | None
    method: str | None


@dataclass(frozen=True, slots=True)
class Wishes:
    """How a request's tokens are decoded, and its prompt is read."""

    decode: Wish
    prefill: Wish


def wishes(options: Mapping[str, Any] | None, offers: Offers) -> Wishes:
    """Check what a request says under `headway`.

    Raises:
        RequestError: an unknown key, or a method or setting that is wrong or not offered; names the field.
    """
    for key in options or ():
        if key not in KEYS:
            field = f"headway.{key[:80]}"
            raise RequestError(f"{field}: unknown key; did you mean {nearest(key[:80], KEYS)}", field)
    decode, prefill = (_chosen((options or {}).get(key), f"headway.{key}") for key in KEYS)
    decoding, prefilling = offers.settings(decode, prefill)
    return Wishes(_wish(decode, decoding), _wish(prefill, prefilling))


def options_schema(offers: Offers) -> dict[str, Any]:
    """JSON schema of what this server accepts under `headway`."""
    options = {
        "title": "HeadwayOptions",
        "type": "object",
        "properties": {
            "decode": _kind_schema(offers.decode, "what each generated token reads"),
            "prefill": _kind_schema(offers.prefill, "what the prompt's tokens read"),
        },
        "additionalProperties": False,
    }
    return {"anyOf": [options, {"type": "null"}]}


def _chosen(given: Any, field: str) -> dict[str, Any] | None:
    if given is None:
        return None
    if not isinstance(given, Mapping):
        raise RequestError(f"{field}: must be an object with a method and its settings", field)
    return {key: value for key, value in given.items() if value is not None}


def _wish(chosen: dict[str, Any] | None, settings: MethodSettings) -> Wish:
    if chosen is None:
        return Wish(None, None if settings.method == "dense" else settings.method)
    # From the settings and not as it came: a whole number may stand for a fraction.
    return Wish({key: getattr(settings, key) for key in chosen}, settings.method)


def _kind_schema(offer: Offer[Any, Any], what: str) -> dict[str, Any]:
    variants = [_method_schema(offer.of(name), offer) for name in offer.methods]
    return {
        "description": f"Method and settings of {offer.kind.name}, {what}, for this request; what is left "
        "out is as the server serves it. `headway recipes` explains the methods.",
        "anyOf": [*variants, {"type": "null"}],
    }


def _method_schema(settings: MethodSettings, offer: Offer[Any, Any]) -> dict[str, Any]:
    schema = type(settings).model_json_schema()
    properties: dict[str, Any] = {"method": {"const": settings.method}}
    for name in of_requests(type(settings)):
        if name != "method":
            accepted = {key: value for key, value in schema["properties"][name].items() if key != "default"}
            if name in offer.caps:
                accepted["maximum"] = offer.caps[name]
            properties[name] = {"anyOf": [accepted, {"type": "null"}], "default": getattr(settings, name)}
    return {
        "title": settings.method,
        "type": "object",
        "properties": properties,
        "required": [] if settings.method == offer.default.method else ["method"],
        "additionalProperties": False,
    }
