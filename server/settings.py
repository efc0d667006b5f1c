"""Settings: the engine's and the server's, from one YAML file, the environment and the command line."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, SecretStr

from headway.engine.config import EngineConfig
from headway.engine.config_section import load_yaml, parse
from headway.engine.errors import ConfigError

KEYS_VARIABLE = "HEADWAY_API_KEYS"


class ServerConfig(BaseModel):
    """The HTTP side: where it listens, who may ask, and how much."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    host: str = Field("127.0.0.1", description="Address to listen on; 0.0.0.0 opens it to the network.")
    port: Annotated[int, Field(ge=0, le=65535)] = Field(8000, description="0 picks a free port.")
    api_keys: tuple[SecretStr, ...] = Field(
        (), description=f"Keys that clients send as `Authorization: Bearer …`; also {KEYS_VARIABLE}=a,b."
    )
    api_key_file: Path | None = Field(None, description="A file with one key a line.")
    max_body_bytes: Annotated[int, Field(ge=1024)] = Field(
        32 * 1024 * 1024, description="Longest request body, in bytes."
    )
    max_prompts: Annotated[int, Field(ge=1)] = Field(
        128, description="Prompts that one /v1/completions request may hold."
    )
    keep_alive_seconds: Annotated[float, Field(gt=0)] = Field(
        15.0, description="Silence after which a stream sends an SSE comment."
    )
    drain_seconds: Annotated[float, Field(ge=0)] = Field(
        30.0, description="Time that running requests get to finish after SIGTERM."
    )
    cors_origins: tuple[str, ...] = Field((), description="Web origins that browsers may call from.")
    continue_trailing_assistant: bool = Field(
        False, description="Continue a final assistant message even if the request does not ask for it."
    )


class _File(EngineConfig):
    """The keys of a configuration file: the engine's, and `server`."""

    server: ServerConfig = ServerConfig()


@dataclass(frozen=True, slots=True)
class Settings:
    """Everything that `headway serve` is told."""

    engine: EngineConfig
    server: ServerConfig


def load_settings(
    file: Path | None = None,
    overrides: Mapping[str, Any] | None = None,
    environment: Mapping[str, str] = os.environ,
) -> Settings:
    """Read and check the settings.

    Args:
        file: a YAML file, or None for the defaults.
        overrides: values that win over the file, by dotted key (`model.name`, `server.port`); None is absent.
        environment: where HEADWAY_API_KEYS is looked up; its keys are added to the file's.

    Raises:
        ConfigError: names each wrong key; for an unknown one, the nearest valid key. Never shows an API key.
    """
    data = load_yaml(file) if file else {}
    for path, value in (overrides or {}).items():
        if value is not None:
            section, key = path.split(".")
            target = data.setdefault(section, {})
            if not isinstance(target, dict):
                raise ConfigError(f"{section}: must be a mapping, not a {type(target).__name__}")
            target[key] = value
    server = data.setdefault("server", {})
    if isinstance(server, dict):
        server["api_keys"] = _collect_keys(server, environment)
    parsed = parse(_File, data)
    sections = {name: getattr(parsed, name) for name in EngineConfig.model_fields}
    return Settings(EngineConfig(**sections), parsed.server)


def _keys_in(file: Path) -> list[str]:
    try:
        keys = file.read_text(encoding="utf-8").split()
    except OSError as error:
        raise ConfigError(f"server.api_key_file: cannot read it: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"server.api_key_file: not UTF-8: {error.reason}") from error
    if not keys:
        raise ConfigError("server.api_key_file: it holds no key")
    return keys


def _collect_keys(server: Mapping[str, Any], environment: Mapping[str, str]) -> tuple[SecretStr, ...]:
    listed = server.get("api_keys") or ()
    if not isinstance(listed, list | tuple) or not all(isinstance(key, str) for key in listed):
        raise ConfigError("server.api_keys: must be a list of strings (quote keys that look like numbers)")
    keys = [*listed]
    if isinstance(server.get("api_key_file"), str | Path):
        keys += _keys_in(Path(server["api_key_file"]))
    if variable := environment.get(KEYS_VARIABLE):
        named = [key.strip() for key in variable.split(",") if key.strip()]
        if not named:  # whoever sets it wants no open server
            raise ConfigError(f"{KEYS_VARIABLE}: it is set, but holds no key")
        keys += named
    if any(not key.strip() or not key.isascii() for key in keys):
        raise ConfigError("server.api_keys: a key must hold ASCII characters, at least one of them no space")
    return tuple(SecretStr(key) for key in keys)
