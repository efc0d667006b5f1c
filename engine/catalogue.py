"""What each method does, takes, needs and rules out, read off its file."""

import inspect
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from headway.engine.cache import page_bytes
from headway.engine.config import SchedulerConfig
from headway.engine.config_section import nearest
from headway.engine.errors import ConfigError
from headway.engine.layer_spec import LayerSpec
from headway.engine.methods.combination import why_no_routes, why_not
from headway.engine.methods.decode.base import DecodeMethod
from headway.engine.methods.kind import DECODE, PREFILL, Kind
from headway.engine.methods.prefill.base import PrefillMethod
from headway.engine.selection.settings import MOST, MethodSettings, of_requests
from headway.engine.sidecars import sidecar_bytes

SHAPE = tuple(
    LayerSpec(layer_idx=i, kv_source=i, num_heads=32, num_kv_heads=8, key_dim=128, value_dim=128, scale=1.0)
    for i in range(32)
)
"""Llama 3.1 8B's, for which the bytes of sidecars are told; in bfloat16 and pages of `PAGE_SIZE` tokens."""
PAGE_SIZE = 64
ROOM = SchedulerConfig().max_step_tokens - SchedulerConfig().max_running
"""Tokens of a step that prompts can count on, by default."""


@dataclass(frozen=True, slots=True)
class Setting:
    """One setting of a method; `default` as JSON has it, `allowed` in words."""

    name: str
    default: Any
    allowed: str
    meaning: str


@dataclass(frozen=True, slots=True)
class Entry:
    """One method with its default settings.

    Attributes:
        kind: decode or prefill.
        text: what it does, in full, a line for each paragraph; the first one is a summary.
        sidecars: their kinds.
        sidecar_bytes: bytes of them that a token of an 8B model (`SHAPE`) costs.
        sidecar_share: the same as a share of its KV.
        sharing: what its requests share through the prefix cache, and with whom.
        limits: what it rules out, needs or harms, a sentence each.
    """

    kind: str
    name: str
    text: str
    settings: tuple[Setting, ...]
    sidecars: tuple[str, ...]
    sidecar_bytes: float
    sidecar_share: float
    sharing: str
    limits: tuple[str, ...]

    @property
    def summary(self) -> str:
        """The first paragraph."""
        return self.text.partition("\n")[0]


def entries(name: str) -> tuple[Entry, ...]:
    """What there is to say of the methods of a name: one, or a decode method and a prefill method.

    Raises:
        ConfigError: there is no such method.
    """
    found = tuple(entry(kind, name) for kind in (DECODE, PREFILL) if name in kind.names())
    if not found:
        known = sorted({*DECODE.names(), *PREFILL.names()})
        raise ConfigError(f"there is no method {name!r}; did you mean {nearest(name, known)}")
    return found


def entry(kind: Kind[Any, Any], name: str) -> Entry:
    """What there is to say of a method; `name` is one of `kind.names()`."""
    method = kind.make(kind.defaults(name))
    kept = method.sidecars()
    beside = sidecar_bytes(kept, SHAPE, PAGE_SIZE, torch.bfloat16)
    return Entry(
        kind=kind.name,
        name=name,
        text=_paragraphs(inspect.getmodule(type(method))).removeprefix(f"{name}:").strip(),
        settings=settings(type(method.settings)),
        sidecars=tuple(sorted({sidecar.kind for sidecar in kept})),
        sidecar_bytes=beside / PAGE_SIZE,
        sidecar_share=beside / page_bytes(SHAPE, PAGE_SIZE, torch.bfloat16),
        sharing=_sharing(method),
        limits=tuple(_limits(method, kind.common)),
    )


def settings(schema: type[MethodSettings]) -> tuple[Setting, ...]:
    """The settings of a method but its name."""
    properties = schema.model_json_schema()["properties"]
    return tuple(
        Setting(name, properties[name].get("default"), _allowed(properties[name]), field.description or "")
        for name, field in schema.model_fields.items()
        if name != "method"
    )


def _sharing(method: DecodeMethod[Any] | PrefillMethod[Any]) -> str:
    if isinstance(method, DecodeMethod):
        if method.sees_all:
            return "Nothing: it reads whole prompts, cached or not."
        if method.observes:
            seen = "token" if method.observes == 1 else f"{method.observes} tokens"
            return f"All pages but those of a prompt's last {seen}, which it always computes."
        return "All pages, with every decode method."
    if method.settings.method == "dense":
        return "All pages, with other dense prompts."
    with_whom = "with requests of the same settings only"
    if method.row_local:
        return (
            f"Row-local: a token chooses by nothing beyond its own {method.granule} tokens. Prompts that "
            f"begin alike share all of these that are whole, however their chunks are cut, {with_whom}."
        )
    return (
        f"Prompt-global: a chunk of {method.granule} tokens chooses by its last queries, so its first tokens "
        f"depend on its last ones. Prompts share only chunks that are alike up to their end, {with_whom}."
    )


def _limits(method: DecodeMethod[Any] | PrefillMethod[Any], common: type[MethodSettings]) -> Sequence[str]:
    limits = []
    if isinstance(method, DecodeMethod):
        if method.degrades:
            limits.append("Degrades: what it has once left out it never reads again.")
        if method.sees_all:
            limits.append("Needs dense prefill.")
        elif method.observes:
            limits.append(f"Beside a prefill method, needs a dense_tail of {method.observes} tokens or more.")
        if why_no_routes(method) is not None:
            limits.append("Not together with recipe.heads or recipe.layers.")
    else:
        against = [name for name in DECODE.names() if why_not(DECODE.make(DECODE.defaults(name)), method)]
        if against:
            limits.append(f"Not together with the decode methods: {', '.join(against)}.")
        if method.granule > ROOM:
            limits.append(
                f"Needs scheduler.max_step_tokens less scheduler.max_running to be {method.granule} or more."
            )
    if type(method).check not in (DecodeMethod.check, PrefillMethod.check):
        limits.append(_paragraphs(type(method).check).partition("\n")[0])
    schema = type(method.settings)
    fixed = [name for name in schema.model_fields if name not in {*of_requests(schema), *common.model_fields}]
    if fixed:
        limits.append(f"Not for requests to choose: {', '.join(fixed)}.")
    return limits


def _paragraphs(documented: object) -> str:
    """A docstring with a line for each paragraph and each item of a list."""
    text = inspect.getdoc(documented) or ""
    return re.sub(r"(?<!\n)\n(?!\n|- ) *", " ", text).replace("\n\n", "\n")


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
