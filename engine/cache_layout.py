"""CacheLayout: in which order, and in whose pages, the cache holds a layer's heads: those that stream last.

What is treated alike then lies together, and one kernel call serves it, whichever heads of the model it is.
The model's weights stay as they are: queries, keys and values are put in order on their way to the cache.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from headway.engine.errors import ConfigError
from headway.engine.layer_spec import LayerSpec
from headway.engine.selection.head_route import HeadRoutes, of_heads


@dataclass(frozen=True, slots=True, eq=False)
class HeadOrder:
    """Of one layer.

    Attributes:
        spec: the layer with its heads in the cache's order.
        keeping, streaming: the layer with those heads alone that keep all their KV, or that stream.
        kv_heads, heads: int64, the model's numbers of the KV heads and query heads, in the cache's order.
        back: int64, the inverse of `heads`; None: the cache's order is the model's.
    """

    spec: LayerSpec
    keeping: LayerSpec
    streaming: LayerSpec
    kv_heads: Tensor
    heads: Tensor
    back: Tensor | None

    def rows(self, rows: Tensor) -> Tensor:
        """Queries [T, Hq, D] or keys or values [T, Hkv, D] in the cache's order."""
        if self.back is None:
            return rows
        return rows[:, self.heads if rows.shape[1] == len(self.heads) else self.kv_heads]

    def restored(self, output: Tensor) -> Tensor:
        """Output [T, Hq, D] in the model's order."""
        return output if self.back is None else output[:, self.back]


@dataclass(frozen=True, slots=True)
class CacheLayout:
    """Of all layers.

    Attributes:
        specs: the layers with the heads that lie in the cache's own pages.
        streaming: the layers with the heads that have other pages; none: all heads lie in the same.
        orders: by layer_idx, of layers of which some heads stream.
    """

    specs: tuple[LayerSpec, ...]
    streaming: tuple[LayerSpec, ...] = ()
    orders: Mapping[int, HeadOrder] = field(default_factory=dict)

    @property
    def sorted(self) -> dict[int, LayerSpec]:
        """By layer_idx, the layers of which some heads stream, these last."""
        return {layer: order.spec for layer, order in self.orders.items()}


def cache_layout(
    routes: HeadRoutes | None, specs: tuple[LayerSpec, ...], device: torch.device, drop: bool
) -> CacheLayout:
    """Heads that stream come last, with `drop` in pages of their own; layers that share KV stay as they are.

    Raises:
        ConfigError: layers share their KV, or keep latents, so that nothing can be dropped.
    """
    if routes is None:
        return CacheLayout(specs)
    if drop:
        _check_droppable(specs)
    shared = {spec.kv_source for spec in specs if not spec.owns_cache}
    orders = {
        spec.layer_idx: _order(spec, sorted(streaming), device)
        for spec in specs
        if (streaming := routes.streaming(spec)) and spec.owns_cache and spec.layer_idx not in shared
    }
    if not drop:
        return CacheLayout(specs, orders=orders)
    keeping = tuple(orders[spec.layer_idx].keeping if spec.layer_idx in orders else spec for spec in specs)
    if not any(spec.num_kv_heads for spec in keeping):
        raise ConfigError(
            "recipe.memory.streaming_heads: drop needs a head that keeps its KV; lower recipe.heads.sparsity"
        )
    return CacheLayout(
        keeping,
        tuple(order.streaming for order in orders.values()),
        orders,
    )


def _check_droppable(specs: Sequence[LayerSpec]) -> None:
    for spec in specs:
        if spec.latent_dim is not None or not spec.owns_cache:
            what = "shares the KV of another layer" if not spec.owns_cache else "keeps latents, no heads"
            raise ConfigError(
                f"recipe.memory.streaming_heads: layer {spec.layer_idx} {what}, so nothing can drop; use keep"
            )


def _order(spec: LayerSpec, streaming: list[int], device: torch.device) -> HeadOrder:
    group = spec.num_heads // spec.num_kv_heads
    keeping = [head for head in range(spec.num_kv_heads) if head not in streaming]
    kv_heads = torch.tensor(keeping + streaming, device=device)
    heads = (kv_heads.unsqueeze(1) * group + torch.arange(group, device=device)).flatten()
    whole = replace(spec, sinks=None if spec.sinks is None else spec.sinks[heads])
    return HeadOrder(
        spec=whole,
        keeping=of_heads(whole, slice(0, len(keeping)))[0],
        streaming=of_heads(whole, slice(len(keeping), spec.num_kv_heads))[0],
        kv_heads=kv_heads,
        heads=heads,
        back=heads.argsort() if streaming[0] < len(keeping) else None,
    )
