"""Layers of keys made up by hand, over which a method selects step by step, without a model."""

import random
from collections.abc import Sequence

import torch
from torch import Tensor

from headway.engine.cache import KVCache
from headway.engine.layer_spec import LayerSpec
from headway.engine.methods.decode import AnyMethod
from headway.engine.selection.decode_selection import DecodeSelection
from headway.engine.selection.layer_cache import LayerCache
from headway.engine.selection.layer_view import GroupStep, LayerView
from headway.engine.selection.state import SelectionState, Stack
from headway.engine.sidecars import WrittenPages
from headway.kernels.paged_attention import plan
from headway.kernels.store_kv import store_kv

PAGE_SIZE, MOST_PAGES = 8, 64
HEADS, KV_HEADS, DIM = 4, 2, 16
GROUP = HEADS // KV_HEADS


def spec(layer_idx: int = 0, **facts: object) -> LayerSpec:
    """A layer of four query heads over two KV heads of size 16."""
    shape = {"num_heads": HEADS, "num_kv_heads": KV_HEADS, "key_dim": DIM, "value_dim": DIM, "scale": 0.25}
    return LayerSpec(**{"layer_idx": layer_idx, "kv_source": layer_idx, **shape, **facts})


class Layers:
    """Sequences of growing length in a poisoned cache with shuffled pages.

    Args:
        keys: per sequence [layers, tokens, Hkv, D].
        chunks: how many tokens are written at once.
    """

    def __init__(
        self, method: AnyMethod, keys: Sequence[Tensor], *, chunk: int = 1000, bases: dict | None = None,
        **facts: object,
    ) -> None:  # fmt: skip
        self.method = method
        self.specs = [spec(layer_idx, **facts) for layer_idx in range(keys[0].shape[0])]
        method.check(self.specs, PAGE_SIZE)
        pages = MOST_PAGES * len(keys)
        self.cache = KVCache(
            self.specs, pages, PAGE_SIZE, torch.float32, torch.device("cpu"), method.sidecars()
        )
        self.cache.sidecars.bases |= bases or {}
        for each in self.specs:
            for tensor in (
                *self.cache.pages(each.layer_idx),
                *self.cache.sidecars.of(each.layer_idx).values(),
            ):
                tensor.fill_(torch.nan)
        numbers = list(range(pages))
        random.Random(0).shuffle(numbers)
        self.tables = [numbers[i * MOST_PAGES : (i + 1) * MOST_PAGES] for i in range(len(keys))]
        self.keys = [each[:, :0] for each in keys]
        states = tuple(SelectionState() for _ in keys)
        zeros = torch.zeros(len(keys), dtype=torch.float64)
        self.stack, self.steps = Stack(states, {}, zeros, zeros.clone()), 0
        for start in range(0, max(each.shape[1] for each in keys), chunk):
            self.append([each[:, start : start + chunk] for each in keys])

    def append(self, keys: Sequence[Tensor]) -> None:
        """Write the next tokens of every sequence, with their sidecars."""
        for index, new in enumerate(keys):
            start, count = self.keys[index].shape[1], new.shape[1]
            if not count:
                continue
            table = self.tables[index]
            slots = [table[i // PAGE_SIZE] * PAGE_SIZE + i % PAGE_SIZE for i in range(start, start + count)]
            written = WrittenPages.of([(table, start, start + count)], PAGE_SIZE, torch.device("cpu"))
            for layer_idx, rows in enumerate(new):
                key_cache, value_cache = self.cache.pages(layer_idx)
                store_kv(rows, rows, key_cache, value_cache, torch.tensor(slots))
                self.cache.sidecars.write(layer_idx, rows, key_cache, written, torch.tensor(slots))
            self.keys[index] = torch.cat((self.keys[index], new), 1)

    def step(self, queries: Tensor) -> list[DecodeSelection]:
        """Select in every layer for queries [layers, B, Hq, D]."""
        lens = [each.shape[1] for each in self.keys]
        whole = plan([1] * len(lens), lens, self.tables, PAGE_SIZE, "cpu")
        steps = torch.full((len(lens),), self.steps)
        group = GroupStep(whole, self.stack, steps == 0, steps)
        found = []
        for each, query in zip(self.specs, queries, strict=True):
            view = LayerView(LayerCache(each, *self.cache.pages(each.layer_idx), self.cache.sidecars), group)
            selection = self.method.select(query, view)
            group.handed[each.layer_idx] = selection
            found.append(selection)
        self.steps += 1
        for member in self.stack.members:
            member.steps = self.steps
        return found


def randn(*shape: int, seed: int = 0) -> Tensor:
    """Seeded normal numbers."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def units(selection: DecodeSelection, row: int = 0) -> list[list[int]]:
    """The units of each list of one sequence."""
    return [[one for one in head if one >= 0] for head in selection.indices[row].tolist()]


def best(scores: Tensor, count: int, forced: set[int]) -> list[int]:
    """The forced units and the best others, `count` in all, ascending."""
    order = [one for one in scores.argsort(descending=True).tolist() if one not in forced]
    return sorted([*forced, *order[: max(0, count - len(forced))]])


def always(length: int, sinks: int, window: int, unit: int = 1) -> set[int]:
    """Units of the sinks and the window."""
    return {token // unit for token in (*range(min(sinks, length)), *range(max(0, length - window), length))}
