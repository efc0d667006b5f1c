"""The one attention function that Hugging Face models call, and what it does over the paged cache."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from headway.engine import forward_context
from headway.engine.cache import KVCache
from headway.engine.cache_layout import HeadOrder
from headway.engine.forward_context import LayerCall, rows
from headway.engine.latent import LatentProjection
from headway.engine.layer_spec import LayerSpec
from headway.engine.selection.layer_cache import LayerCache
from headway.engine.selection.plans import Plans
from headway.engine.selection.selection_step import SelectionStep
from headway.engine.sidecars import WrittenPages, carries
from headway.kernels.decode_attention import decode_attention
from headway.kernels.store_kv import store_kv


def attend(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    **options: Any,
) -> tuple[torch.Tensor, None]:
    """The function registered with `AttentionInterface`: hands the layer to the forward context.

    Raises:
        RuntimeError: the model runs outside of a forward context.
    """
    context = forward_context.current()
    if context is None:
        raise RuntimeError("this model is attached to the engine; it runs only through its ModelRunner")
    return context.attend(LayerCall(module, query, key, value, attention_mask, options)), None


@dataclass(frozen=True, slots=True)
class PagedStep:
    """The forward context of one batch.

    Attributes:
        specs: by `layer_idx`.
        latents: MLA projections by `layer_idx`.
        plans: all tokens of the batch.
        slot_mapping: int64 [T], the cache cell of each token.
        written: the pages of those cells; None: no sidecar is kept.
        selection: what is not dense in this batch; None: nothing.
        orders: by `layer_idx`, of layers whose heads lie in another order than the model's.
        streaming: the pages of heads that stream, and each token's cell in them; None: `cache` has all heads.
        fused: whether keys and values are stored and attended to in one call, as they may be where every
            sequence has one token in the batch, without latents, sidecars, selection and orders.
    """

    specs: tuple[LayerSpec, ...]
    cache: KVCache
    latents: Mapping[int, LatentProjection]
    plans: Plans
    slot_mapping: torch.Tensor
    written: WrittenPages | None = None
    selection: SelectionStep | None = None
    rope_groups: Sequence[tuple[int, torch.Tensor]] = ()
    orders: Mapping[int, HeadOrder] = field(default_factory=dict)
    streaming: tuple[KVCache, torch.Tensor] | None = None
    fused: bool = False

    def attend(self, call: LayerCall) -> torch.Tensor:
        """Write keys, values and sidecars to their pages, then attend over the pages."""
        spec = self.specs[call.layer_idx]
        query, new_key, new_value = rows(call.query), rows(call.key), rows(call.value)
        if self.fused and spec.owns_cache:
            return decode_attention(
                query, new_key, new_value, *self.cache.pages(spec.layer_idx), self.plans.own,
                scale=spec.scale, window=spec.window, softcap=spec.softcap, sinks=spec.sinks,
            ).unsqueeze(0)  # fmt: skip
        order = self.orders.get(spec.layer_idx)
        if order is not None:
            spec = order.spec
            query, new_key, new_value = order.rows(query), order.rows(new_key), order.rows(new_value)
        cache = self._layer(spec, order)
        latent = self.latents.get(spec.layer_idx)
        if latent is not None:
            query = latent.absorb(query)
            new_key = torch.cat((new_key, new_value), dim=-1)
            store_kv(new_key, None, cache.key_cache, None, self.slot_mapping)
        elif spec.owns_cache:
            self._store(new_key, new_value, cache)
        if self.written is not None and carries(spec):
            kept = new_key[:, : cache.key_cache.shape[2]]
            cache.store.write(spec.layer_idx, kept, cache.key_cache, self.written, self.slot_mapping)
        if self.selection is not None and spec.window is None:
            output = self.selection.attend(query, cache)
        else:
            output, _ = cache.attend(query, self.plans)
        if order is not None:
            output = order.restored(output)
        return (output if latent is None else latent.expand(output)).unsqueeze(0)

    def _layer(self, spec: LayerSpec, order: HeadOrder | None) -> LayerCache:
        streaming = None
        if self.streaming is not None and order is not None:
            pages, _ = self.streaming
            streaming = LayerCache(order.streaming, *pages.pages(spec.layer_idx), pages.sidecars)
        return LayerCache(spec, *self.cache.pages(spec.kv_source), self.cache.sidecars, streaming)

    def _store(self, key: torch.Tensor, value: torch.Tensor, cache: LayerCache) -> None:
        kept = cache.key_cache.shape[2]
        if kept:
            store_kv(key[:, :kept], value[:, :kept], cache.key_cache, cache.value_cache, self.slot_mapping)
        if cache.streaming is not None and self.streaming is not None:
            streaming, (_, slots) = cache.streaming, self.streaming
            store_kv(key[:, kept:], value[:, kept:], streaming.key_cache, streaming.value_cache, slots)
