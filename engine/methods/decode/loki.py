"""loki: tokens by scores in a few directions of a PCA basis of the keys (Loki, arXiv 2406.02542).

Keys and queries are projected, after their rotation, on the widest directions of each layer and KV head; the
tokens with the highest products there are read, with their whole keys. Where the basis comes from:
`engine/low_rank.py`. Loki chooses for each query head; here the maximum over the query heads of a group
chooses for its KV head, because lists of their own would read up to that many times the tokens. The paper
reads a quarter of the context (`fraction: 0.25`) and forces neither sinks nor window.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

from pydantic import Field
from torch import Tensor

from headway.engine.errors import ConfigError
from headway.engine.layer_spec import LayerSpec
from headway.engine.methods.decode.base import DecodeMethod
from headway.engine.profile import artefact
from headway.engine.selection.choose import choose
from headway.engine.selection.decode_selection import DecodeSelection
from headway.engine.selection.layer_view import LayerView
from headway.engine.selection.settings import BudgetSettings, Positive
from headway.engine.sidecars import Sidecar, carries
from headway.kernels.unit_scores import unit_scores


class Settings(BudgetSettings):
    """More directions find more of the right tokens and cost more to search."""

    method: Literal["loki"] = "loki"
    rank: Positive | None = Field(
        None, description="Directions of a key that are searched; default: a quarter."
    )
    basis: str | None = Field(
        None,
        description="Profile of kind `lowrank`, or safetensors file with `layers.N` [KV heads, head size, "
        "rank or more], columns orthonormal, the widest first; default: from random tokens, at start.",
    )


class Method(DecodeMethod[Settings]):
    """Top tokens of each KV head, every step."""

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        self._keys = Sidecar("low_rank", rank=settings.rank or 0, basis=settings.basis or "")

    def sidecars(self) -> frozenset[Sidecar]:
        """Keys in the basis."""
        return frozenset({self._keys})

    def profiles(self) -> Mapping[str, Path]:
        """The basis, if a profile holds it."""
        path = self.settings.basis
        return {"basis": Path(path)} if path is not None and artefact.exists(Path(path)) else {}

    def check(self, specs: Sequence[LayerSpec], page_size: int) -> None:  # noqa: ARG002
        """The rank must not exceed any key's size."""
        smallest = min((spec.key_dim for spec in specs if carries(spec)), default=self.settings.rank or 1)
        if (self.settings.rank or 1) > smallest:
            raise ConfigError(f"rank: must be at most the key's size {smallest}, not {self.settings.rank}")

    def select(self, query: Tensor, layer: LayerView) -> DecodeSelection:
        """Tokens, one list per KV head."""
        spec, keys = layer.spec, layer.sidecars[self._keys]
        projected = layer.store.project(spec.kv_source, self._keys, query)
        scores = unit_scores(projected, keys, layer.plan, scale=spec.scale, reduce="max")
        return choose(scores, layer, self.settings, unit=1)
