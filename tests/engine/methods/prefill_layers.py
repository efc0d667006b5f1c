"""A layer of keys made up by hand, over which a method prefills a whole prompt, without a model."""

import random
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from headway.engine.cache import KVCache
from headway.engine.methods.prefill import AnyMethod
from headway.engine.selection.chunk_view import ChunkView
from headway.engine.selection.layer_cache import LayerCache
from headway.engine.selection.prefill_settings import PrefillSettings
from headway.engine.sidecars import WrittenPages
from headway.kernels.paged_attention import paged_attention, plan
from headway.kernels.store_kv import store_kv

from .layers import DIM, HEADS, KV_HEADS, PAGE_SIZE, randn, spec


@dataclass
class Prefilled:
    """Of a whole prompt: out [N, Hq, Dv], lse [N, Hq], and the pairs that the method says it has read."""

    out: Tensor
    lse: Tensor
    pairs: int


def prompt(length: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Random queries [N, Hq, D], keys and values [N, Hkv, D]."""
    query = randn(length, HEADS, DIM, seed=3 * seed)
    key, value = (randn(length, KV_HEADS, DIM, seed=3 * seed + place) for place in (1, 2))
    return query, key, value


def prefill(
    method: AnyMethod, query: Tensor, key: Tensor, value: Tensor, granules: int = 1, **facts: object
) -> Prefilled:
    """Chunk by chunk of so many granules, over shuffled pages that are NaN wherever no token is yet."""
    parts, pairs = [], 0
    for view, rows in chunks(method, query, key, value, granules, **facts):
        parts.append(method.attend(rows, view))
        pairs += int(sum(view.counted))
    out, lse = (torch.cat(each) for each in zip(*parts, strict=True))
    return Prefilled(out, lse, pairs)


def chunks(
    method: AnyMethod, query: Tensor, key: Tensor, value: Tensor, granules: int = 1, **facts: object
) -> Iterator[tuple[ChunkView, Tensor]]:
    """The ChunkView of each chunk, and its queries, once its keys are stored."""
    length = len(query)
    layer = spec(num_heads=query.shape[1], num_kv_heads=key.shape[1], value_dim=value.shape[2], **facts)
    method.check([layer], PAGE_SIZE)
    count = -(-length // PAGE_SIZE)
    table = list(range(count + 3))
    random.Random(length).shuffle(table)
    cache = KVCache([layer], len(table), PAGE_SIZE, torch.float32, torch.device("cpu"), method.sidecars())
    for tensor in (*cache.pages(0), *cache.sidecars.of(0).values()):
        tensor.fill_(torch.nan)
    size = granules * method.granule
    for start in range(0, length, size):
        stop = min(start + size, length)
        places = range(start, stop)
        slots = torch.tensor([table[at // PAGE_SIZE] * PAGE_SIZE + at % PAGE_SIZE for at in places])
        written = WrittenPages.of([(table, start, stop)], PAGE_SIZE, torch.device("cpu"))
        store_kv(key[start:stop], value[start:stop], *cache.pages(0), slots)
        cache.sidecars.write(0, key[start:stop], cache.pages(0)[0], written, slots)
        whole = plan([stop - start], [stop], [table], PAGE_SIZE, "cpu")
        yield ChunkView(LayerCache(layer, *cache.pages(0), cache.sidecars), whole, length), query[start:stop]


def dense(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    """What a method that leaves nothing out must give."""
    pages = -(-len(query) // PAGE_SIZE)
    padded = [each.new_zeros(pages * PAGE_SIZE, *each.shape[1:]) for each in (key, value)]
    for cache, each in zip(padded, (key, value), strict=True):
        cache[: len(each)] = each
    caches = [cache.unflatten(0, (-1, PAGE_SIZE)) for cache in padded]
    whole = plan([len(query)], [len(query)], [range(pages)], PAGE_SIZE, "cpu")
    return paged_attention(query, *caches, whole, scale=spec().scale)


def read_counts(
    method: AnyMethod, query: Tensor, key: Tensor, granules: int = 1, *,
    softcap: float | None = None, sinks: Tensor | None = None,
) -> tuple[Tensor, int]:  # fmt: skip
    """float64 [Hq, N, N]: how often row i reads key j, a sample for what it stands for; and the pairs."""
    names = torch.eye(len(query)).unsqueeze(1).expand(-1, key.shape[1], -1)
    done = prefill(method, query, key, names, granules, softcap=softcap, sinks=sinks)
    weights = done.out.double() * done.lse.double().exp().unsqueeze(-1)
    return weights.transpose(0, 1) / logits(query, key, softcap).exp(), done.pairs


def logits(query: Tensor, key: Tensor, softcap: float | None = None) -> Tensor:
    """float64 [Hq, T, N] of queries [T, Hq, D] and keys [N, Hkv, D]."""
    every = key.double().repeat_interleave(query.shape[1] // key.shape[1], 1)
    scores = torch.einsum("thd,nhd->htn", query.double(), every) * spec().scale
    return scores if softcap is None else softcap * (scores / softcap).tanh()


def dense_rows(length: int, settings: PrefillSettings) -> Tensor:
    """bool [N]: rows of tiles that read everything."""
    starts = torch.arange(length) // settings.tile * settings.tile
    return (starts < settings.dense_below) | (starts + settings.tile > length - settings.dense_tail)
