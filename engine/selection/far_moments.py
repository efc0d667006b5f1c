"""Mean and covariance of a request's far keys: those between its sinks and its window.

Taken from the cache in a request's first step; in every other one the key that leaves the window joins them.
Nothing depends on how the request came to its first step, so that a prefix cache hit and a preemption change
nothing.
"""

import torch
from torch import Tensor

from headway.engine.key_moments import AT_ONCE, KeyMoments
from headway.engine.layer_spec import LayerSpec
from headway.engine.selection.layer_view import LayerView

Moments = tuple[Tensor, Tensor]
"""Mean fp32 [B, Hkv, D] and covariance fp32 [B, Hkv, D, D]."""


def num_far(layer: LayerView, sink_size: int, window_size: int) -> Tensor:
    """int32 [B], tokens between sinks and window."""
    return (layer.step.kv_lens - sink_size - window_size).clamp_min(0)


def moments_bytes(spec: LayerSpec) -> int:
    """What `far_moments` remembers of one sequence in a layer."""
    return torch.float32.itemsize * spec.num_kv_heads * spec.key_dim * (1 + spec.key_dim)


def far_moments(layer: LayerView, sink_size: int, window_size: int) -> Moments:
    """Of each sequence; zeros where it has no far key. The layer view remembers them."""
    mean, covariance = _with_newest(layer, sink_size, window_size)
    for row, member in enumerate(layer.step.stack.members):
        stop = layer.plan.host_kv_lens[row] - window_size
        if member.steps == 0 and stop > sink_size:
            mean[row], covariance[row] = _of_tokens(layer, row, sink_size, stop)
    layer.put("mean", mean)
    layer.put("covariance", covariance)
    return mean, covariance


def _with_newest(layer: LayerView, sink_size: int, window_size: int) -> Moments:
    """What is remembered, or zeros, with the key that has just left the window."""
    spec, lens = layer.spec, layer.step.kv_lens
    mean, covariance = layer.get("mean"), layer.get("covariance")
    if mean is None or covariance is None:
        shape = len(lens), spec.num_kv_heads, spec.key_dim
        mean = torch.zeros(shape, device=lens.device)
        covariance = mean.new_zeros(*shape, spec.key_dim)
    token = (lens - window_size - 1).clamp_min(0).long()
    page = layer.plan.block_table.gather(1, (token // layer.page_size).unsqueeze(1)).squeeze(1).long()
    count = num_far(layer, sink_size, window_size)
    weight = torch.where(count > 0, 1 / count, 0.0).view(-1, 1, 1)
    shift = layer.key_cache[page, token % layer.page_size].float() - mean
    spread = covariance + weight.unsqueeze(-1) * shift.unsqueeze(-1) * shift.unsqueeze(-2)
    return mean + weight * shift, (1 - weight).unsqueeze(-1) * spread


def _of_tokens(layer: LayerView, row: int, start: int, stop: int) -> Moments:
    """Moments [Hkv, …] of one sequence's tokens from `start` up to `stop`."""
    moments = KeyMoments(layer.spec.num_kv_heads, layer.spec.key_dim, layer.key_cache.device)
    table, page_size = layer.plan.block_table[row].long(), layer.page_size
    at_once = max(1, AT_ONCE // page_size)
    for page in range(start // page_size, -(-stop // page_size), at_once):
        first = page * page_size
        keys = layer.key_cache[table[page : page + at_once]].flatten(0, 1)
        moments.add(keys[max(0, start - first) : stop - first])
    return moments.mean.float(), moments.covariance.float()
