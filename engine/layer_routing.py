"""LayerRouting: for each request the layers that read everything; the others read sinks and window only.

Decided once, before a request is queued, and kept as long as the request: prefill, decode, what is computed
again after a preemption, and the prefix cache all go by it.
"""

from collections.abc import Sequence as Many
from functools import lru_cache

from headway.engine.errors import RequestFailed
from headway.engine.isolation import isolated
from headway.engine.layer_router import LayerRouter
from headway.engine.layer_spec import LayerSpec
from headway.engine.methods import decode, prefill
from headway.engine.methods.kind import DECODE, PREFILL
from headway.engine.methods.routed import RoutedDecode, RoutedPrefill
from headway.engine.preview import Preview
from headway.engine.request import Sequence
from headway.engine.selection.head_route import HeadRoutes
from headway.engine.selection.prefill_settings import PrefillSettings
from headway.engine.selection.settings import DecodeSettings

Layers = tuple[int, ...]


class LayerRouting:
    """Routes the layers of one model; it must be attached whenever `route` is called.

    Args:
        sink_size, window_size: tokens that a sparse layer reads.

    Attributes:
        undecided: routes in which no layer is sparse: with them, methods are checked and requests begin.
    """

    def __init__(
        self,
        specs: Many[LayerSpec],
        preview: Preview,
        router: LayerRouter,
        sink_size: int,
        window_size: int,
    ) -> None:
        self._specs, self._preview, self._router = specs, preview, router
        self._shape = sink_size, window_size
        self.undecided = self._routes(router.layers)
        # The n answers to one prompt are n requests.
        self._full_layers = lru_cache(maxsize=64)(self._look)
        self._decode = lru_cache(maxsize=1024)(self._make_decode)
        self._prefill = lru_cache(maxsize=1024)(self._make_prefill)

    def route(self, sequence: Sequence) -> None:
        """Decide on a request that is not queued yet, and let it be served so.

        What is left to no prefill method, because it is short or its log-probabilities are asked for, is full
        throughout, as is a prompt that is no longer than its preview.

        Raises:
            RequestFailed: the model failed on the preview.
            EngineDead: the accelerator is lost.
        """
        full = self._router.layers
        if sequence.prefill is not None and sequence.num_prompt > 2 * self._preview.pool_size:
            full = self._full_layers(self._preview.ends(sequence.submit.prompt))
        sequence.full_layers = full
        if sequence.decode is not None:
            sequence.decode = self._decode(sequence.decode.settings, full)
        if sequence.prefill is not None:
            sequence.prefill = self._prefill(sequence.prefill.settings, full)
        if sequence.prefill is None:
            sequence.granule = 1

    def _look(self, ends: tuple[int, ...]) -> Layers:
        def work(previews: Many[tuple[int, ...]]) -> list[Layers]:
            return [self._router.full_layers(self._preview.queries(one)) for one in previews]

        (full,) = isolated(work, [ends])
        if isinstance(full, RequestFailed):
            raise full
        return full

    def _make_decode(self, settings: DecodeSettings, full: Layers) -> decode.AnyMethod | None:
        own = DECODE.make(settings)
        if full != self._router.layers:
            return RoutedDecode(own, self._routes(full))
        return None if settings.method == "dense" else own

    def _make_prefill(self, settings: PrefillSettings, full: Layers) -> prefill.AnyMethod | None:
        own = PREFILL.make(settings)
        if full != self._router.layers:
            return RoutedPrefill(own, self._routes(full))
        return None if settings.method == "dense" else own

    def _routes(self, full: Layers) -> HeadRoutes:
        sparse = {
            idx: range(spec.num_kv_heads) for idx, spec in self._preview.layers.items() if idx not in full
        }
        return HeadRoutes(self._specs, sparse, *self._shape)
