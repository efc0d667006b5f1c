"""hylra: some layers read everything and hand what mattered to the layers behind (HyLRA, arXiv 2602.00777).

A full layer attends to all tokens and hands on those that got most of its attention, a list for each KV
head. A reuse layer reads the list of the nearest full layer before it and scores nothing. Which layers are
full is a policy found offline (`headway profile MODEL --what layers`); the one in force when none is given,
the first two and every fourth one after them, is an inference from the paper's remark that the first layers
stay full, and knows nothing of the model. The paper hands on blocks of 128 tokens; here they are tokens.
(Only its abstract and a digest were read; no code is published.)
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator
from torch import Tensor

from headway.engine.errors import ConfigError
from headway.engine.layer_spec import LayerSpec
from headway.engine.methods.decode.base import DecodeMethod
from headway.engine.profile import artefact
from headway.engine.selection.choose import choose
from headway.engine.selection.decode_selection import DecodeSelection
from headway.engine.selection.layer_view import LayerView
from headway.engine.selection.mass import log_mass
from headway.engine.selection.settings import BudgetSettings, Count
from headway.kernels.unit_scores import unit_scores


class Policy(BaseModel):
    """What a policy file holds."""

    model_config = ConfigDict(extra="forbid")

    full_layers: tuple[Count, ...]


class Settings(BudgetSettings):
    """Fewer full layers read less; those that reuse another's list read the budget."""

    method: Literal["hylra"] = "hylra"
    full_layers: tuple[Count, ...] | None = Field(
        None,
        description="Layers that read everything; default: the first two and every fourth one after them.",
    )
    policy: str | None = Field(
        None,
        description='Profile of kind `layers` or JSON file {"full_layers": […]}, in place of full_layers.',
    )
    reduce: Literal["max", "sum"] = Field(
        "max", description="How the attention of a group's query heads makes one list."
    )

    @field_validator("policy")
    @classmethod
    def _is_alone(cls, value: str | None, others: ValidationInfo) -> str | None:
        if value is not None and others.data.get("full_layers") is not None:
            raise ValueError("give either full_layers or policy")
        return value


class Method(DecodeMethod[Settings]):
    """Full layers, and reuse layers that inherit.

    Attributes:
        sources: of every layer that selects, the full layer whose list it reads; of the model checked last.
    """

    hands_on: ClassVar[bool] = True

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        self.sources: Mapping[int, int] = {}

    def profiles(self) -> Mapping[str, Path]:
        """The policy, if a profile holds it."""
        path = self.settings.policy
        return {"policy": Path(path)} if path is not None and artefact.exists(Path(path)) else {}

    def check(self, specs: Sequence[LayerSpec], page_size: int) -> None:  # noqa: ARG002
        """Find each layer's source; a reuse layer needs a full one with as many KV heads before it."""
        layers = self.choosing(specs)
        full = self._full(layers)
        selecting = {spec.layer_idx for spec in layers}
        if not full <= selecting:
            raise ConfigError(
                f"full_layers: {sorted(full - selecting)} read everything anyway or do not exist; "
                f"the others are {sorted(selecting)}"
            )
        sources: dict[int, int] = {}
        source: LayerSpec | None = None
        for spec in layers:
            if spec.layer_idx in full:
                source = spec
            elif source is None or source.num_kv_heads != spec.num_kv_heads:
                raise ConfigError(
                    f"full_layers: layer {spec.layer_idx} must be one of them, because no full layer "
                    f"before it has its {spec.num_kv_heads} KV heads"
                )
            sources[spec.layer_idx] = source.layer_idx
        self.sources = sources

    def select(self, query: Tensor, layer: LayerView) -> DecodeSelection:
        """Everything, or the tokens of the layer that this one inherits from."""
        source = self.sources[layer.spec.layer_idx]
        if source != layer.spec.layer_idx:
            handed = layer.step.handed[source]
            return DecodeSelection(handed.indices, handed.unit, handed.counts)
        spec = layer.spec
        logits = unit_scores(query, layer.key_cache, layer.plan, scale=spec.scale, softcap=spec.softcap)
        mass = log_mass(logits, spec.num_kv_heads, self.settings.reduce, spec.sinks)
        chosen = choose(mass, layer, self.settings, unit=1)
        everybody = torch.ones_like(layer.step.fresh)
        return DecodeSelection(chosen.indices, 1, chosen.counts, dense=everybody)

    def _full(self, layers: Sequence[LayerSpec]) -> set[int]:
        if self.settings.policy is not None:
            return set(_read(Path(self.settings.policy)).full_layers)
        if self.settings.full_layers is not None:
            return set(self.settings.full_layers)
        full: set[int] = set()
        heads = 0
        for place, spec in enumerate(layers):
            if place == 0 or place % 4 == 1 or spec.num_kv_heads != heads:
                full.add(spec.layer_idx)
                heads = spec.num_kv_heads
        return full


def _read(path: Path) -> Policy:
    try:
        if artefact.exists(path):
            facts = artefact.load(path).facts
            if facts.kind != "layers":
                raise ConfigError(f"policy: {path} is a profile of kind {facts.kind}; it must be layers")
            return Policy.model_validate({"full_layers": facts.findings.get("full_layers")})
        return Policy.model_validate_json(path.read_bytes())
    except (OSError, ValidationError) as error:
        raise ConfigError(
            f'policy: {path} must be JSON like {{"full_layers": [0, 1, 5]}}: {error}'
        ) from error
