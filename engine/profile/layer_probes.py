"""Decode methods that measure: one that blinds a layer, one that sees what layers have in common."""

import math
from collections import defaultdict
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import pad

from headway.engine.layer_spec import LayerSpec
from headway.engine.methods.decode import hylra, streaming
from headway.engine.selection.decode_selection import DecodeSelection
from headway.engine.selection.layer_view import LayerView
from headway.engine.selection.mass import log_mass
from headway.kernels.unit_scores import unit_scores


class Blinded(streaming.Method):
    """One layer reads sinks and window, every other one everything."""

    def __init__(self, settings: streaming.Settings, layer_idx: int) -> None:
        super().__init__(settings)
        self._layer_idx = layer_idx

    def select(self, query: Tensor, layer: LayerView) -> DecodeSelection:
        """Sinks and window in that layer."""
        selection = super().select(query, layer)
        if layer.spec.layer_idx != self._layer_idx:
            selection = DecodeSelection(
                selection.indices, selection.unit, dense=torch.ones_like(layer.step.fresh)
            )
        return selection


class Overlaps(hylra.Method):
    """Dense, and watches how much of what a layer attends to stands in the lists of the layers before it.

    Args:
        settings: its `full_layers` do not count.
    """

    def __init__(self, settings: hylra.Settings, specs: Sequence[LayerSpec], page_size: int) -> None:
        layers = [spec.layer_idx for spec in specs if spec.window is None]
        super().__init__(settings.model_copy(update={"full_layers": tuple(layers)}))
        self.check(specs, page_size)
        self._kv_heads = [spec.num_kv_heads for spec in specs]
        # (i, j): attention of layer j's heads to what layer i's lists hold, summed over steps.
        self._caught: dict[tuple[int, int], float] = defaultdict(float)

    def select(self, query: Tensor, layer: LayerView) -> DecodeSelection:
        """Everything, and the list that hylra would hand on."""
        selection = super().select(query, layer)
        spec, settings = layer.spec, self.settings
        logits = unit_scores(query, layer.key_cache, layer.plan, scale=spec.scale, softcap=spec.softcap)
        mass = log_mass(logits, spec.num_kv_heads, "sum", spec.sinks).exp()
        forced = layer.step.forced(1, settings.sink_size, settings.window_size)
        # One more place, without attention, for the holes of a list.
        middle = mass.masked_fill(forced[:, : mass.shape[-1]].unsqueeze(1), 0.0)
        middle = pad(middle, (0, 1))
        for source, handed in {**layer.step.handed, spec.layer_idx: selection}.items():
            if self._kv_heads[source] == spec.num_kv_heads:
                places = handed.indices.long()
                places = torch.where(places < 0, middle.shape[-1] - 1, places)
                self._caught[source, spec.layer_idx] += float(middle.gather(-1, places).sum())
        return selection

    def shares(self) -> Tensor:
        """fp64 [layers, layers]: at [i, j] what layer i's lists catch of what layer j's own do, sinks and
        window apart; NaN where j cannot read i's."""
        overlap = torch.full((len(self._kv_heads), len(self._kv_heads)), math.nan, dtype=torch.float64)
        for (source, layer), caught in self._caught.items():
            own = self._caught[layer, layer]
            overlap[source, layer] = caught / own if own else 1.0
        return overlap
