"""DecodeMethod: a named way to choose what a decode step reads."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar

from torch import Tensor

from headway.engine.errors import ConfigError
from headway.engine.layer_spec import LayerSpec
from headway.engine.selection.decode_selection import DecodeSelection
from headway.engine.selection.layer_view import LayerView
from headway.engine.selection.settings import BudgetSettings, DecodeSettings, Positive
from headway.engine.sidecars import Kind, Sidecar
from headway.kernels.unit_scores import Reduction, unit_scores

Settings = TypeVar("Settings", bound=DecodeSettings)


class DecodeMethod(Generic[Settings]):
    """Chooses what each layer reads for sequences that bring one query each.

    One object serves all requests of equal settings; what it remembers of a request stands in the layer
    view. A method file holds one `Settings` model, whose `method` names it, and one `Method`.

    Attributes:
        observes: prompt tokens whose queries it must see at the end of prefill; they are never taken from
            the prefix cache. 0: none.
        sees_all: it must see the queries of the whole prompt.
        degrades: what it has once left out it never reads again.
        hands_on: a layer may read by what another one has chosen.
        routes_heads: it decides itself which heads read sinks and window only.
    """

    observes: int = 0
    sees_all: bool = False
    degrades: ClassVar[bool] = False
    hands_on: ClassVar[bool] = False
    routes_heads: ClassVar[bool] = False

    def __init__(self, settings: Settings) -> None:
        self.settings = settings

    def sidecars(self) -> frozenset[Sidecar]:
        """What must be kept beside the pages."""
        return frozenset()

    def check(self, specs: Sequence[LayerSpec], page_size: int) -> None:
        """Refuse a model that the settings do not fit, and note of one that they fit what choosing needs.

        Called before anything is chosen. A refusal leaves the object as it was.

        Raises:
            ConfigError: begins with a setting's name and a colon; what does not fit, and what is allowed.
        """

    def state_bytes(self, specs: Sequence[LayerSpec], context: int) -> int:
        """What it remembers of a sequence of `context` tokens from one decode step to the next, in bytes."""
        return sum(self.layer_bytes(spec, context) for spec in self.choosing(specs))

    def layer_bytes(self, spec: LayerSpec, context: int) -> int:  # noqa: ARG002
        """The same of one layer that it chooses for."""
        return 0

    def choosing(self, specs: Sequence[LayerSpec]) -> list[LayerSpec]:
        """The layers that it chooses for: all without a window, but not the first ones, `dense_layers`."""
        first = self.settings.dense_layers
        return [spec for spec in specs if spec.window is None and spec.layer_idx >= first]

    def profiles(self) -> Mapping[str, Path]:
        """Profiles it was told to read, by setting; they must be of the served model."""
        return {}

    def parts(self, layer: LayerView) -> "tuple[Part, ...]":
        """The layer's heads, by what chooses for them: nothing does in the first layers, `dense_layers`."""
        dense = layer.spec.layer_idx < self.settings.dense_layers
        return (Part(layer, slice(None), None if dense else self),)

    def select(self, query: Tensor, layer: LayerView) -> DecodeSelection:
        """What the queries [B, Hq, Dk] read; the tokens they belong to are stored already."""
        raise NotImplementedError

    def attend(self, query: Tensor, layer: LayerView, selection: DecodeSelection) -> Tensor | None:  # noqa: ARG002
        """Attention [B, Hq, Dv] over a selection, for a method that attends in its own way; None: plainly."""
        return None

    def observe(self, query: Tensor, lse: Tensor, layer: LayerView) -> None:
        """See queries [T, Hq, Dk] of a prompt, and the lse [T, Hq] of their dense attention.

        Called for a method that observes, in layers that it chooses for and in order of position; `layer`
        shows one sequence, up to the last of these tokens.
        """


@dataclass(frozen=True, slots=True)
class Part:
    """Query heads of a layer, as a layer of their own, and what chooses for them; None: they read all."""

    layer: LayerView
    heads: slice
    method: DecodeMethod[Any] | None


class RunSettings(BudgetSettings):
    """Settings of a method that ranks runs of tokens."""

    unit: Positive


Runs = TypeVar("Runs", bound=RunSettings)


class RunMethod(DecodeMethod[Runs]):
    """Ranks runs of `unit` tokens by one row of a sidecar each.

    Attributes:
        kind: what a row holds.
    """

    kind: ClassVar[Kind]

    def __init__(self, settings: Runs) -> None:
        super().__init__(settings)
        self._runs = Sidecar(self.kind, unit=settings.unit)

    def sidecars(self) -> frozenset[Sidecar]:
        """A row for each run."""
        return frozenset({self._runs})

    def check(self, specs: Sequence[LayerSpec], page_size: int) -> None:  # noqa: ARG002
        """The unit must divide a page."""
        unit = self.settings.unit
        if page_size % min(unit, page_size):
            raise ConfigError(f"unit: must divide cache.page_size = {page_size}, not {unit}")

    def scores(
        self, query: Tensor, layer: LayerView, reduce: Reduction = "max", active: Tensor | None = None
    ) -> tuple[Tensor, int]:
        """The runs' scores fp32 [B, Hs, N] for queries [B, Hq, numbers], and the tokens of a run.

        Args:
            active: bool [B], the sequences that are scored; None: all.
        """
        table = layer.sidecars[self._runs]
        scores = unit_scores(query, table, layer.plan, scale=layer.spec.scale, reduce=reduce, active=active)
        return scores, layer.page_size // table.shape[1]
