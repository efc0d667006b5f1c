"""Sections of a configuration: read from YAML, refused with the name of the wrong key."""

import difflib
import types
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from headway.engine.errors import ConfigError

Positive = Annotated[int, Field(ge=1)]


class Section(BaseModel):
    """A mapping of a configuration file; unknown keys are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


Schema = typing.TypeVar("Schema", bound=BaseModel)


class WrongKeys(ValueError):
    """What a validator found wrong inside its value: lines that begin with a key of it, or with a colon."""


def load_yaml(path: Path) -> dict[str, Any]:
    """Read a YAML mapping.

    Raises:
        ConfigError: the file is missing, is no YAML, or is no mapping.
    """
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not UTF-8: {error.reason}") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is not valid YAML: {error}") from error
    if data is None:
        return {}
    if not isinstance(data, dict):
        raise ConfigError(f"{path} must hold a mapping, not a {type(data).__name__}")
    return data


def parse(schema: type[Schema], data: dict[str, Any]) -> Schema:
    """Validate `data` against `schema`.

    Raises:
        ConfigError: names each wrong key; for an unknown one, the nearest valid key.
    """
    try:
        return schema.model_validate(data)
    except ValidationError as error:
        raise ConfigError("\n".join(explain(schema, error))) from error


def explain(schema: type[BaseModel], error: ValidationError) -> list[str]:
    """A line for each thing that is wrong: the key, what is allowed, and what it got."""
    return [line for item in error.errors() for line in _explain(schema, item)]


def _explain(schema: type[BaseModel], item: Any) -> list[str]:
    path = [str(part) for part in item["loc"]]
    where = ".".join(path)
    inner = item.get("ctx", {}).get("error")
    if isinstance(inner, WrongKeys):
        return [f"{where}{'' if line[0] == ':' else '.'}{line}" for line in str(inner).splitlines()]
    if item["type"] != "extra_forbidden":
        return [f"{where}: {item['msg'].removeprefix('Value error, ')} (got {item['input']!r})"]
    section = schema
    for part in path[:-1]:
        section = _section_of(section.model_fields[part].annotation)
    return [f"{where}: unknown key; did you mean {nearest(path[-1], sorted(section.model_fields))}"]


def nearest(word: str, valid: Sequence[str]) -> str:
    """The valid word nearest to a wrong one, then all of them: the end of a sentence that asks back."""
    near = difflib.get_close_matches(word, valid, n=1, cutoff=0.0)
    return f"{near[0]!r}? Valid: {', '.join(valid)}"


def _section_of(annotation: Any) -> type[BaseModel]:
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        annotation = next(part for part in typing.get_args(annotation) if part is not type(None))
    return typing.cast("type[BaseModel]", annotation)
