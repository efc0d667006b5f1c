"""What each decode method does, takes, needs and rules out, read off its file."""

import inspect
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from headway.engine.cache import page_bytes
from headway.engine.config_section import nearest
from headway.engine.errors import ConfigError
from headway.engine.layer_spec import LayerSpec
from headway.engine.methods import decode
from headway.engine.methods.decode import AnyMethod
from headway.engine.methods.decode.base import DecodeMethod
from headway.engine.selection.settings import MOST, DecodeSettings, of_requests
from headway.engine.sidecars import sidecar_bytes

SHAPE = tuple(
    LayerSpec(layer_idx=i, kv_source=i, num_heads=32, num_kv_heads=8, key_dim=128, value_dim=128, scale=1.0)
    for i in range(32)
)
"""Llama 3.1 8B's, for which the bytes of sidecars are told; in bfloat16 and pages of `PAGE_SIZE` tokens."""
PAGE_SIZE = 64


@dataclass(frozen=True, slots=True)
class Setting:
    """One setting of a method; `default` as JSON has it, `allowed` in words."""

    name: str
    default: Any
    allowed: str
    meaning: str


@dataclass(frozen=True, slots=True)
class Entry:
    """One decode method with its default settings.

    Attributes:
        text: what it does, in full, a line for each paragraph; the first one is a summary.
        sidecars: their kinds.
        sidecar_bytes: bytes of them that a token of an 8B model (`SHAPE`) costs.
        sidecar_share: the same as a share of its KV.
        limits: what it rules out, needs or harms, a sentence each.
    """

    name: str
    text: str
    settings: tuple[Setting, ...]
    sidecars: tuple[str, ...]
    sidecar_bytes: float
    sidecar_share: float
    limits: tuple[str, ...]

    @property
    def summary(self) -> str:
        """The first paragraph."""
        return self.text.partition("\n")[0]


def entry(name: str) -> Entry:
    """What there is to say of a method.

    Raises:
        ConfigError: there is no such method.
    """
    if name not in decode.names():
        raise ConfigError(f"there is no method {name!r}; did you mean {nearest(name, decode.names())}")
    schema, kind = decode.load(name)
    method = kind(schema.model_validate({"method": name}))
    kept = method.sidecars()
    beside = sidecar_bytes(kept, SHAPE, PAGE_SIZE, torch.bfloat16)
    return Entry(
        name=name,
        text=_paragraphs(inspect.getmodule(kind)).removeprefix(f"{name}:").strip(),
        settings=settings(schema),
        sidecars=tuple(sorted({sidecar.kind for sidecar in kept})),
        sidecar_bytes=beside / PAGE_SIZE,
        sidecar_share=beside / page_bytes(SHAPE, PAGE_SIZE, torch.bfloat16),
        limits=tuple(_limits(method)),
    )


def settings(schema: type[DecodeSettings]) -> tuple[Setting, ...]:
    """The settings of a method but its name."""
    properties = schema.model_json_schema()["properties"]
    return tuple(
        Setting(name, properties[name].get("default"), _allowed(properties[name]), field.description or "")
        for name, field in schema.model_fields.items()
        if name != "method"
    )


def _limits(method: AnyMethod) -> Sequence[str]:
    limits = []
    if method.degrades:
        limits.append("Degrades: what it has once left out it never reads again.")
    if method.sees_all:
        limits.append("Reads whole prompts: its requests take nothing from the prefix cache.")
    elif method.observes:
        seen = "token" if method.observes == 1 else f"{method.observes} tokens"
        limits.append(f"Always computes a prompt's last {seen}, cached or not.")
    if type(method).check is not DecodeMethod.check:
        limits.append(_paragraphs(type(method).check).partition("\n")[0])
    schema = type(method.settings)
    fixed = [name for name in schema.model_fields if name not in of_requests(schema)]
    if fixed:
        limits.append(f"Not for requests to choose: {', '.join(fixed)}.")
    return limits


def _paragraphs(documented: object) -> str:
    """A docstring with a line for each paragraph and each item of a list."""
    text = inspect.getdoc(documented) or ""
    return re.sub(r"(?<!\n)\n(?!\n|- )", " ", text).replace("\n\n", "\n")


def _allowed(schema: dict[str, Any]) -> str:
    """The values that a setting's JSON schema admits, in words."""
    if "anyOf" in schema:
        return " or ".join(map(_allowed, schema["anyOf"]))
    if "enum" in schema:
        return ", ".join(map(str, schema["enum"]))
    kinds = {
        "integer": "whole number",
        "number": "number",
        "boolean": "true, false",
        "string": "text",
        "array": "list",
    }
    bounds = [
        f"{sign} {schema[key]:g}"
        for key, sign in (
            ("minimum", "≥"),
            ("exclusiveMinimum", ">"),
            ("maximum", "≤"),
            ("exclusiveMaximum", "<"),
        )
        if key in schema and abs(schema[key]) < MOST
    ]
    kind = schema.get("type", "anything")
    return " ".join([kinds.get(kind, kind), ", ".join(bounds)]).strip()
