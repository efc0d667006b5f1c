"""Artefact: one profile of one model, as data: NAME.json says what it is, NAME.safetensors holds its tensors.

Scores of heads are named alike in every kind, so that routing reads them all: `kv_heads`, float32
[layers, KV heads], higher = needs more of the context; NaN where a layer has fewer KV heads than the widest.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from safetensors import SafetensorError
from safetensors.torch import load_file
from safetensors.torch import save as to_bytes
from torch import Tensor

import headway
from headway.engine.config_section import Section, parse
from headway.engine.errors import ConfigError
from headway.engine.loaded import LoadedModel
from headway.engine.needle import WEIGHTS

VERSION = 1
_SHORT_LIST = re.compile(r"\[[^][{}]*\]")


class Facts(Section):
    """What a profile is, and of which model: the JSON half.

    Attributes:
        kind: the file of `engine/profile/` that made it.
        model: its name, for people; `fingerprint` decides.
        rope: the model's RoPE parameters.
        rope_key: `LengthRope.rope_key` of the longest sequence that was run, in hex.
        findings: what was found beside the tensors: stability, explained variance, a policy.
    """

    version: int
    kind: str
    model: str
    fingerprint: str
    dtype: str
    rope: dict[str, Any]
    rope_key: str
    seeds: tuple[int, ...]
    settings: dict[str, Any]
    findings: dict[str, Any]
    made_by: str


@dataclass(frozen=True, slots=True)
class Artefact:
    """A profile.

    Attributes:
        tensors: by name; a kind says in its own file what it holds.
    """

    facts: Facts
    tensors: Mapping[str, Tensor]

    def check(self, loaded: LoadedModel) -> None:
        """Refuse another model than the profile was made of.

        Raises:
            ConfigError: it differs in RoPE, dtype or weights; says in which.
        """
        facts, name = self.facts, model_name(loaded)
        here = f"the {facts.kind} profile of {facts.model}"
        again = f"make one for this model: headway profile {name} --what {facts.kind}"
        if facts.rope != rope_parameters(loaded):
            raise ConfigError(
                f"{here} was made with the RoPE parameters {facts.rope}, not with {rope_parameters(loaded)}; "
                f"{again}"
            )
        if facts.dtype != _dtype(loaded):
            raise ConfigError(f"{here} was made in {facts.dtype}, not in {_dtype(loaded)}; {again}")
        if facts.fingerprint != loaded.fingerprint.hex():
            raise ConfigError(f"{here} is of other weights than {name}; {again}")


def made(
    loaded: LoadedModel, kind: str, tensors: Mapping[str, Tensor], *, settings: BaseModel,
    seeds: Sequence[int], length: int, findings: Mapping[str, Any] | None = None,
) -> Artefact:  # fmt: skip
    """The profile that `tensors` make, with the provenance of `loaded`.

    Args:
        length: tokens of the longest sequence that was run.
        findings: anything JSON can hold but infinities and NaN.
    """
    facts = Facts(
        version=VERSION,
        kind=kind,
        model=model_name(loaded),
        fingerprint=loaded.fingerprint.hex(),
        dtype=_dtype(loaded),
        rope=rope_parameters(loaded),
        rope_key=loaded.rope.rope_key(length).hex(),
        seeds=tuple(seeds),
        settings=settings.model_dump(mode="json"),
        # As it will be read again.
        findings=json.loads(json.dumps(findings or {}, allow_nan=False)),
        made_by=f"headway {headway.__version__}",
    )
    return Artefact(facts, {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()})


def save(path: Path, artefact: Artefact) -> None:
    """Write `path`.json and `path`.safetensors; a pair cut short by a crash does not load."""
    facts, tensors = _pair(path)
    facts.parent.mkdir(parents=True, exist_ok=True)
    facts.unlink(missing_ok=True)
    tensors.write_bytes(to_bytes(dict(artefact.tensors)))
    partial = facts.with_suffix(".json.partial")
    text = json.dumps(artefact.facts.model_dump(mode="json"), indent=1, allow_nan=False)
    partial.write_text(f"{_SHORT_LIST.sub(_on_one_line, text)}\n", encoding="utf-8")
    partial.replace(facts)


def load(path: Path) -> Artefact:
    """Read a profile; `path` with or without `.json` or `.safetensors`.

    Raises:
        ConfigError: there is none, it is damaged, or of an unknown version.
    """
    facts_path, tensors_path = _pair(path)
    try:
        data = json.loads(facts_path.read_text(encoding="utf-8"))
        tensors = load_file(tensors_path)
    except (OSError, ValueError, SafetensorError) as error:
        raise ConfigError(f"cannot read the profile {path}: {error}") from error
    if not isinstance(data, dict) or data.get("version") != VERSION:
        version = data.get("version") if isinstance(data, dict) else None
        raise ConfigError(f"the profile {path} has the version {version!r}; this Headway reads {VERSION}")
    try:
        return Artefact(parse(Facts, data), tensors)
    except ConfigError as error:
        raise ConfigError(f"the profile {path} is damaged: {error}") from error


def exists(path: Path) -> bool:
    """Whether both halves are there."""
    return all(half.is_file() for half in _pair(path))


def model_name(loaded: LoadedModel) -> str:
    """How people call the model: `needle`, its folder's name or its hub id."""
    source = str(loaded.model.name_or_path)
    if source == str(WEIGHTS):
        return "needle"
    return Path(source).name if Path(source).is_dir() else source


def rope_parameters(loaded: LoadedModel) -> dict[str, Any]:
    """What the model's configuration says of RoPE, as JSON holds it."""
    config = loaded.model.config.get_text_config(decoder=True)
    parameters: dict[str, Any] = json.loads(
        json.dumps(getattr(config, "rope_parameters", None) or {}, default=str)
    )
    return parameters


def _dtype(loaded: LoadedModel) -> str:
    return str(loaded.dtype).removeprefix("torch.")


def _on_one_line(found: re.Match[str]) -> str:
    # JSON strings hold no line breaks, so that only indentation goes.
    return re.sub(r"\n\s*", "", re.sub(r",\n\s*", ", ", found[0]))


def _pair(path: Path) -> tuple[Path, Path]:
    stem = path.with_suffix("") if path.suffix in (".json", ".safetensors") else path
    return stem.with_name(f"{stem.name}.json"), stem.with_name(f"{stem.name}.safetensors")
