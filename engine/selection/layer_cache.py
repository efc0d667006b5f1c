"""LayerCache: one layer of the paged cache, and its dense attention."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from headway.engine.layer_spec import LayerSpec
from headway.engine.selection.head_route import HeadRun
from headway.engine.selection.plans import Plans
from headway.engine.sidecars import Sidecar, SidecarStore
from headway.kernels.paged_attention import AttentionPlan, paged_attention


@dataclass(frozen=True, slots=True, eq=False)
class LayerCache:
    """Keys and values of a layer's heads, with what is kept beside them.

    Attributes:
        spec: the layer, with all its heads.
        key_cache, value_cache: [num_pages, page_size, Hkv, D]; without the last KV heads, those of
            `streaming`, where these have pages of their own.
    """

    spec: LayerSpec
    key_cache: Tensor
    value_cache: Tensor
    store: SidecarStore
    streaming: "LayerCache | None" = None

    @property
    def page_size(self) -> int:
        """Tokens a page."""
        return self.key_cache.shape[1]

    def of_heads(self, run: HeadRun) -> "LayerCache":
        """These heads as a layer of their own."""
        if self.streaming is not None and run.streams:
            return self.streaming
        kv_heads = run.kv_heads
        return LayerCache(
            run.spec,
            self.key_cache[:, :, kv_heads],
            self.value_cache[:, :, kv_heads],
            self.store.of_heads(kv_heads),
        )

    def attend(self, query: Tensor, plans: Plans) -> tuple[Tensor, Tensor]:
        """Dense attention of all heads: queries [T, Hq, Dk] → out [T, Hq, Dv] and lse fp32 [T, Hq]."""
        if self.streaming is None or plans.streaming is None:
            return self.attend_own(query, plans.own)
        heads = query.shape[1] - self.streaming.spec.num_heads
        parts = [self.streaming.attend_own(query[:, heads:], plans.streaming)]
        if heads:
            parts.insert(0, self.attend_own(query[:, :heads], plans.own))
        return side_by_side(parts)

    def attend_own(self, query: Tensor, plan: AttentionPlan) -> tuple[Tensor, Tensor]:
        """The same of the heads in `key_cache` alone."""
        spec = self.spec
        sinks = None if spec.sinks is None else spec.sinks[: query.shape[1]]
        return paged_attention(
            query, self.key_cache, self.value_cache, plan,
            scale=spec.scale, window=spec.window, softcap=spec.softcap, sinks=sinks,
        )  # fmt: skip


def side_by_side(parts: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Out and lse of all heads from those of their parts, in order."""
    if len(parts) == 1:
        return parts[0]
    out, lse = (torch.cat(each, dim=1) for each in zip(*parts, strict=True))
    return out, lse


@dataclass(slots=True, eq=False)
class CacheView:
    """What is asked of a layer most."""

    cache: LayerCache

    @property
    def spec(self) -> LayerSpec:
        """The layer."""
        return self.cache.spec

    @property
    def key_cache(self) -> Tensor:
        """[num_pages, page_size, Hkv, Dk]"""
        return self.cache.key_cache

    @property
    def value_cache(self) -> Tensor:
        """[num_pages, page_size, Hkv, Dv]"""
        return self.cache.value_cache

    @property
    def page_size(self) -> int:
        """Tokens a page."""
        return self.cache.page_size

    @property
    def store(self) -> SidecarStore:
        """The layer's sidecars and what they are made by."""
        return self.cache.store

    @property
    def sidecars(self) -> Mapping[Sidecar, Tensor]:
        """Tables [num_pages, units, Hkv, numbers] of the layer that owns the keys."""
        return self.store.of(self.spec.kv_source)
