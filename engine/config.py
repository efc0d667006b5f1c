"""EngineConfig: everything the engine is told, from YAML, checked at start."""

import difflib
import types
import typing
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from headway.engine.errors import ConfigError

Positive = Annotated[int, Field(ge=1)]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class ModelConfig(_Section):
    """Which model, and how it is loaded."""

    name: str = Field("needle", description="`needle` (embedded), a local folder, or a Hugging Face id.")
    served_name: str | None = Field(None, description="The name in /v1/models; default: `name`.")
    revision: str | None = Field(None, description="Hub revision (branch, tag or commit).")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto", description="auto: the checkpoint's, but float32 on a CPU without fast bfloat16."
    )
    device: Literal["auto", "cpu", "cuda"] = "auto"
    max_context: Positive | None = Field(
        None, description="Longest prompt + answer, in tokens; default: the model's own limit."
    )
    rope_scaling: dict[str, Any] | None = Field(
        None, description="Replaces the model's rope_scaling (for example a YaRN profile)."
    )
    trust_remote_code: bool = Field(False, description="Run Python code shipped with the model.")
    threads: Positive | None = Field(None, description="CPU threads of the engine; default: all cores.")


class CacheConfig(_Section):
    """The paged KV cache."""

    page_size: Positive = Field(64, description="Tokens a page; a power of two.")
    memory_gib: Annotated[float, Field(gt=0)] | None = Field(
        None, description="Memory for KV pages; default: what is left after weights and activations."
    )
    memory_fraction: Annotated[float, Field(gt=0, le=1)] = Field(
        0.85, description="Share of the device's free memory to use when memory_gib is not given."
    )
    prefix_cache: bool = Field(True, description="Keep finished pages and reuse them for equal prefixes.")

    @field_validator("page_size")
    @classmethod
    def _is_power_of_two(cls, value: int) -> int:
        if value & (value - 1):
            raise ValueError("must be a power of two")
        return value


class SchedulerConfig(_Section):
    """What runs next, and how much may wait."""

    max_step_tokens: Positive = Field(2048, description="Tokens a step: decodes first, then prefill chunks.")
    max_running: Positive = Field(64, description="Requests that may hold pages at once.")
    max_partial_prefills: Positive = Field(4, description="Prompts being prefilled side by side.")
    max_queued_requests: Positive = Field(256, description="Waiting requests before the server answers 429.")
    max_queued_tokens: Positive = Field(8_388_608, description="Waiting prompt tokens before a 429.")
    ageing_tokens_per_second: Annotated[float, Field(ge=0)] = Field(
        2048.0, description="How fast a waiting prompt gains on shorter ones, in uncached tokens a second."
    )


class LimitsConfig(_Section):
    """Bounds on what one request may ask for."""

    max_n: Positive = 16
    max_logprobs: Annotated[int, Field(ge=0)] = 20
    max_stop_strings: Positive = 16
    max_logit_bias: Positive = 1024


class EngineConfig(_Section):
    """The engine's whole configuration; every key has a default."""

    model: ModelConfig = ModelConfig()
    cache: CacheConfig = CacheConfig()
    scheduler: SchedulerConfig = SchedulerConfig()
    limits: LimitsConfig = LimitsConfig()
    watchdog_seconds: Annotated[float, Field(gt=0)] = Field(
        300.0, description="A step that takes longer than this means that the engine hangs."
    )


Section = typing.TypeVar("Section", bound=BaseModel)


def load_yaml(path: Path) -> dict[str, Any]:
    """Read a YAML mapping.

    Raises:
        ConfigError: the file is missing, is no YAML, or is no mapping.
    """
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is not valid YAML: {error}") from error
    if data is None:
        return {}
    if not isinstance(data, dict):
        raise ConfigError(f"{path} must hold a mapping, not a {type(data).__name__}")
    return data


def parse(schema: type[Section], data: dict[str, Any]) -> Section:
    """Validate `data` against `schema`.

    Raises:
        ConfigError: names each wrong key; for an unknown one, the nearest valid key.
    """
    try:
        return schema.model_validate(data)
    except ValidationError as error:
        raise ConfigError("\n".join(_explain(schema, item) for item in error.errors())) from error


def _explain(schema: type[BaseModel], item: Any) -> str:
    path = [str(part) for part in item["loc"]]
    where = ".".join(path)
    if item["type"] != "extra_forbidden":
        return f"{where}: {item['msg'].removeprefix('Value error, ')} (got {item['input']!r})"
    section = schema
    for part in path[:-1]:
        section = _section_of(section.model_fields[part].annotation)
    names = sorted(section.model_fields)
    near = difflib.get_close_matches(path[-1], names, n=1, cutoff=0.0)
    return f"{where}: unknown key; did you mean {near[0]!r}? Valid keys: {', '.join(names)}"


def _section_of(annotation: Any) -> type[BaseModel]:
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        annotation = next(part for part in typing.get_args(annotation) if part is not type(None))
    return typing.cast("type[BaseModel]", annotation)
