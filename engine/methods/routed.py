"""Methods whose heads are routed: retrieval heads read by a recipe's method, the others sinks and window.

To either, a layer's run of heads is a layer of its own. As in DuoAttention (arXiv 2410.10819), but without
permuted weights, and tile by tile in prefill, so that nothing depends on how a prompt is cut into chunks.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from headway.engine.errors import ConfigError
from headway.engine.layer_spec import LayerSpec
from headway.engine.methods.combination import why_no_routes
from headway.engine.methods.decode import streaming as decode_streaming
from headway.engine.methods.decode.base import DecodeMethod, Part
from headway.engine.methods.prefill import dense as prefill_dense
from headway.engine.methods.prefill import streaming as prefill_streaming
from headway.engine.methods.prefill.base import PrefillMethod
from headway.engine.selection.chunk_view import ChunkView
from headway.engine.selection.forced import attend_from
from headway.engine.selection.head_route import HeadRoutes
from headway.engine.selection.layer_cache import side_by_side
from headway.engine.selection.layer_view import LayerView
from headway.engine.selection.prefill_selection import PrefillSelection
from headway.engine.sidecars import Sidecar


class RoutedDecode(DecodeMethod[Any]):
    """Another decode method, `dense` among them, for the heads that do not stream."""

    def __init__(self, own: DecodeMethod[Any], routes: HeadRoutes) -> None:
        super().__init__(own.settings)
        self.observes, self.sees_all = own.observes, own.sees_all
        self._own, self._routes = own, routes
        self._streaming = decode_streaming.Method(
            decode_streaming.Settings(sink_size=routes.sink_size, window_size=routes.window_size)
        )

    def sidecars(self) -> frozenset[Sidecar]:
        """Those of the own method."""
        return self._own.sidecars()

    def check(self, specs: Sequence[LayerSpec], page_size: int) -> None:
        """The own method must choose for each head, and fit the model."""
        reason = why_no_routes(self._own)
        if reason is not None:
            raise ConfigError(reason)
        self._own.check(specs, page_size)

    def state_bytes(self, specs: Sequence[LayerSpec], context: int) -> int:
        """What the own method remembers of its heads."""
        runs = (run for spec in specs for run in self._routes.runs(spec))
        return self._own.state_bytes([run.spec for run in runs if not run.streams], context)

    def parts(self, layer: LayerView) -> tuple[Part, ...]:
        """The layer's runs; heads that stream do so in the first layers, too."""
        everything = self.settings.method == "dense" or layer.spec.layer_idx < self.settings.dense_layers
        own = None if everything else self._own
        return tuple(
            Part(layer.of_heads(run), run.heads, self._streaming if run.streams else own)
            for run in self._routes.runs(layer.spec)
        )

    def observe(self, query: Tensor, lse: Tensor, layer: LayerView) -> None:
        """The own method sees its heads."""
        for run in self._routes.runs(layer.spec):
            if not run.streams:
                self._own.observe(query[:, run.heads], lse[:, run.heads], layer.of_heads(run))


class RoutedPrefill(PrefillMethod[Any]):
    """Another prefill method, `dense` among them, for the heads that do not stream."""

    def __init__(self, own: PrefillMethod[Any], routes: HeadRoutes) -> None:
        super().__init__(own.settings)
        self.row_local = own.row_local
        self._own, self._routes = own, routes
        self._dense = prefill_dense.Method(prefill_dense.Settings())
        streaming = prefill_streaming.Method if routes.question_reads_all else _WithoutTail
        self._streaming = streaming(
            prefill_streaming.Settings(
                sink_size=routes.sink_size,
                window_size=routes.window_size,
                tile=own.settings.tile,
                dense_below=own.settings.dense_below,
                dense_tail=own.settings.dense_tail,
            )
        )

    @property
    def granule(self) -> int:
        """That of the own method."""
        return self._own.granule

    def sidecars(self) -> frozenset[Sidecar]:
        """Those of the own method."""
        return self._own.sidecars()

    def check(self, specs: Sequence[LayerSpec], page_size: int) -> None:
        """The own method must fit the model."""
        self._own.check(specs, page_size)

    def identity(self) -> dict[str, Any]:
        """The own method's, and the routes."""
        return {**self._own.identity(), "heads": self._routes.identity}

    def attend(self, query: Tensor, chunk: ChunkView) -> tuple[Tensor, Tensor]:
        """Run by run."""
        return self._by_runs(query, chunk, self._own)

    def attend_densely(self, query: Tensor, chunk: ChunkView) -> tuple[Tensor, Tensor]:
        """Heads that stream do so in the first layers, too."""
        return self._by_runs(query, chunk, self._dense)

    def _by_runs(self, query: Tensor, chunk: ChunkView, own: PrefillMethod[Any]) -> tuple[Tensor, Tensor]:
        return side_by_side(
            [
                (self._streaming if run.streams else own).attend(query[:, run.heads], chunk.of_heads(run))
                for run in self._routes.runs(chunk.spec)
            ]
        )


class _WithoutTail(prefill_streaming.Method):
    """No dense tail: the tokens generated behind it read no more than sinks and window either."""

    def attend(self, query: Tensor, chunk: ChunkView) -> tuple[Tensor, Tensor]:
        """Over sinks, window and the dense beginning."""
        settings, starts = self.settings, chunk.tile_starts(self.settings.tile)
        near = (starts - settings.window_size).clamp_min(0)
        local = torch.where(starts < settings.dense_below, 0, near).unsqueeze(0)
        return attend_from(query, chunk, local, PrefillSelection(), settings)
