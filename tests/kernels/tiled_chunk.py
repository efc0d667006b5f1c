"""A chunk whose tiles read chosen keys, an fp64 oracle for it, and caches that show only what is read."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from headway.kernels.paged_attention import AttentionPlan
from headway.kernels.tile_attention import tile_attention
from tests.kernels.conftest import make_batch

Lists = tuple[int, int, int]


@dataclass
class TiledChunk:
    """Keys and values `[N, H, D]` beside the caches; `given`: the lists as tile_attention takes them."""

    query: Tensor
    key_cache: Tensor
    value_cache: Tensor
    plan: AttentionPlan
    keys: Tensor
    values: Tensor
    tile: int
    given: dict[str, Any]

    def read(self, head: int, row: int) -> list[int]:
        """What the docstring of tile_attention says that one row of one head reads."""
        tokens, heads = self.query.shape[:2]
        before, tile = len(self.keys) - tokens, row // self.tile
        start, sink_size = before + tile * self.tile, 0
        local, found = start, set()
        if (local_from := self.given["local_from"]) is not None:
            sink_size = self.given["sink_size"]
            local = min(start, int(local_from[head * len(local_from) // heads, tile]))
            found = {j for j in range(before + row + 1) if j < sink_size or j >= local}
        for name, width in (("spans", self.given["span"]), ("columns", 1)):
            if (lists := self.given[name]) is None:
                continue
            tiles = -(-tokens // self.tile)
            one = lists[head * len(lists) // heads, tile // -(-tiles // lists.shape[1])]
            listed = {first + i for first in one.tolist() if first >= 0 for i in range(width)}
            found |= {j for j in listed if j < local}
        return sorted(found)

    def oracle(
        self, scale: float, softcap: float | None = None, sinks: Tensor | None = None,
        initial: tuple[Tensor, Tensor] | None = None,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """One row of one head after the other."""
        tokens, heads, _ = self.query.shape
        out = torch.zeros(tokens, heads, self.values.shape[2], dtype=torch.float64)
        lse = torch.full((tokens, heads), float("-inf"), dtype=torch.float64)
        for row in range(tokens):
            for head in range(heads):
                kv_head = head * self.keys.shape[1] // heads
                keys = self.read(head, row)
                logits = self.keys[keys, kv_head].double() @ self.query[row, head].double() * scale
                if softcap is not None:
                    logits = softcap * torch.tanh(logits / softcap)
                weights, values = logits.exp(), self.values[keys, kv_head].double()
                if initial is not None:
                    weights = torch.cat([weights, initial[1][row, head].double().exp()[None]])
                    values = torch.cat([values, initial[0][row, head].double()[None]])
                total = weights.sum() + (0.0 if sinks is None else sinks[head].double().exp())
                if total > 0:
                    out[row, head] = weights @ values / total
                    lse[row, head] = total.log()
        return out, lse

    def run(self, scale: float = 0.2, **kind: Any) -> tuple[Tensor, Tensor]:
        caches = self.key_cache, self.value_cache
        return tile_attention(self.query, *caches, self.plan, self.tile, scale=scale, **self.given, **kind)

    def check(self, scale: float = 0.2, atol: float = 2e-5, **kind: Any) -> None:
        out, lse = self.run(scale, **kind)
        expected, expected_lse = self.oracle(scale, **kind)
        assert out.dtype == self.query.dtype
        assert lse.dtype == torch.float32
        torch.testing.assert_close(out.double(), expected, atol=atol, rtol=10 * atol)
        torch.testing.assert_close(lse.double(), expected_lse, atol=atol, rtol=10 * atol)

    def hide(self) -> None:
        """Make NaN what no row of a KV head's group reads."""
        heads, num_kv_heads = self.query.shape[1], self.keys.shape[1]
        hidden = torch.ones(len(self.keys), num_kv_heads, dtype=torch.bool)
        for head in range(heads):
            for row in range(len(self.query)):
                hidden[self.read(head, row), head * num_kv_heads // heads] = False
        page_size = self.key_cache.shape[1]
        for position, kv_head in hidden.nonzero().tolist():
            page = int(self.plan.host_tables[0][position // page_size])
            self.key_cache[page, position % page_size, kv_head] = torch.nan
            self.value_cache[page, position % page_size, kv_head] = torch.nan


def random_initial(chunk: TiledChunk) -> tuple[Tensor, Tensor]:
    """Of a first pass in which some rows read nothing."""
    out, lse = torch.randn(*chunk.query.shape[:2], chunk.values.shape[2]), torch.randn(chunk.query.shape[:2])
    empty = torch.rand(lse.shape) < 0.3
    return out.masked_fill(empty[..., None], 0.0).to(chunk.query.dtype), lse.masked_fill(empty, float("-inf"))


def make_tiles(
    tokens: int,
    length: int,
    tile: int,
    lists: Lists = (1, 1, 1),
    heads: tuple[int, int] = (4, 2),
    span: int = 5,
    counts: tuple[int, int] = (3, 7),
    column_lists: int | None = None,
    local: str | None = "mixed",
    sink_size: int = 4,
    **kind: Any,
) -> TiledChunk:
    """The last `tokens` of `length`; `lists`: for how many heads local_from, spans and columns are.

    counts: entries of a list of spans and of one of columns, a fifth of them negative, some of them behind
    the tile; local: `mixed` (near, far, everything, or too late), `near`, `all`, or None.
    """
    made = make_batch([(tokens, length)], heads, **kind)
    tiles = -(-tokens // tile)
    starts = length - tokens + torch.arange(tiles) * tile
    local_from = None
    if local is not None:
        kinds = torch.stack([starts - 3, starts // 2, torch.zeros_like(starts), starts + 2])
        which = {"near": (0, 1), "all": (2, 3), "mixed": (0, 4)}[local]
        chosen = torch.randint(*which, (lists[0], tiles))
        local_from = kinds[chosen, torch.arange(tiles)].to(torch.int32)

    # spans begin at even multiples of `span` from some offset, columns lie in between: no key is named twice
    offset = int(torch.randint(span, ()))
    cells = torch.arange(length) - offset
    even = offset + span * torch.arange(0, max(1, length // span), 2)
    odd = torch.arange(length)[(cells // span) % 2 == 1]

    def draw(pool: Tensor, shape: tuple[int, int], count: int) -> Tensor:
        drawn = torch.full((*shape, count), -1)
        for one in drawn.view(-1, count):
            taken = pool[torch.randperm(len(pool))[:count]]
            one[torch.randperm(count)[: len(taken)]] = taken
        drawn[torch.rand(drawn.shape) < 0.2] = -3
        return drawn.to(torch.int32)

    given = {
        "local_from": local_from, "sink_size": sink_size, "span": span,
        "spans": draw(even, (lists[1], tiles), counts[0]) if counts[0] else None,
        "columns": draw(odd, (lists[2], min(tiles, column_lists or tiles)), counts[1]) if counts[1] else None,
    }  # fmt: skip
    caches = made.key_cache, made.value_cache
    chunk = TiledChunk(made.query, *caches, made.plan, made.keys[0], made.values[0], tile, given)
    chunk.hide()
    return chunk
