"""Random decode groups with random lists; every cell of the cache that no list names is NaN."""

import random
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from headway.kernels.paged_attention import AttentionPlan, plan
from headway.kernels.selected_attention import selected_attention

Lists = list[list[list[int]]]


@dataclass
class Selections:
    """A decode group over a pool in which `keys` and `values` hold what the caches show in part."""

    query: Tensor
    key_cache: Tensor
    value_cache: Tensor
    keys: Tensor  # [num_pages, page_size, Hkv, D]
    values: Tensor
    plan: AttentionPlan
    tables: list[list[int]]
    kv_lens: list[int]
    lists: Lists  # [B][Hs]
    unit: int
    page_size: int
    width: int

    @property
    def indices(self) -> Tensor:
        rows = [[one + [-1] * (self.width - len(one)) for one in lists] for lists in self.lists]
        return torch.tensor(rows, dtype=torch.int32)

    def tokens(self, b: int, head: int) -> list[int]:
        lists = self.lists[b]
        units = lists[head * len(lists) // self.query.shape[1]]
        tokens = [one * self.unit + i for one in units for i in range(self.unit)]
        return [token for token in tokens if token < self.kv_lens[b]]

    def oracle(
        self, scale: float, softcap: float | None = None, sinks: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """One query head after the other, in fp64, tokens looked up one by one."""
        batch, heads, _ = self.query.shape
        group = heads // self.keys.shape[2]
        out = torch.zeros(batch, heads, self.values.shape[3], dtype=torch.float64)
        lse = torch.full((batch, heads), float("-inf"), dtype=torch.float64)
        for b in range(batch):
            for head in range(heads):
                at = [divmod(token, self.page_size) for token in self.tokens(b, head)]
                cells = [(self.tables[b][page], offset, head // group) for page, offset in at]
                total = 0.0 if sinks is None else sinks[head].double().exp()
                terms = []
                for cell in cells:
                    logit = self.keys[cell].double() @ self.query[b, head].double() * scale
                    if softcap is not None:
                        logit = softcap * torch.tanh(logit / softcap)
                    terms.append(logit.exp())
                total = total + sum(terms)
                for term, cell in zip(terms, cells, strict=True):
                    out[b, head] += term / total * self.values[cell].double()
                if cells or sinks is not None:
                    lse[b, head] = torch.log(total)
        return out, lse

    def run(self, scale: float = 0.2, **kind: Any) -> tuple[Tensor, Tensor]:
        return selected_attention(
            self.query, self.key_cache, self.value_cache, self.plan, self.indices, self.unit, scale=scale,
            **kind,
        )  # fmt: skip

    def check(self, scale: float = 0.2, atol: float = 2e-5, **kind: Any) -> None:
        out, lse = self.run(scale, **kind)
        expected, expected_lse = self.oracle(scale, **kind)
        assert out.dtype == self.query.dtype
        assert lse.dtype == torch.float32
        torch.testing.assert_close(out.double(), expected, atol=atol, rtol=10 * atol)
        torch.testing.assert_close(lse.double(), expected_lse, atol=atol, rtol=10 * atol)

    def expose(self) -> None:
        """Show the chosen cells in the caches and nothing else."""
        group = self.query.shape[1] // self.keys.shape[2]
        for b, table in enumerate(self.tables):
            for head in range(self.query.shape[1]):
                for token in self.tokens(b, head):
                    cell = (table[token // self.page_size], token % self.page_size, head // group)
                    self.key_cache[cell] = self.keys[cell]
                    self.value_cache[cell] = self.values[cell]


def block_tables(kind: str, counts: list[int]) -> list[list[int]]:
    """Tables of so many pages: shuffled, reversed, interleaved, shared (a common prefix) or far."""
    total = sum(counts)
    if kind == "interleaved":
        return [[b + len(counts) * i for i in range(count)] for b, count in enumerate(counts)]
    if kind == "shared":
        return [[*range(count - 1), max(counts) + b] for b, count in enumerate(counts)]
    free = list(range(total + 3))
    if kind == "reversed":
        free.reverse()
    else:
        random.shuffle(free)
    if kind == "far":
        free = [page + 700 for page in free]
    starts = [sum(counts[:b]) for b in range(len(counts))]
    return [free[start : start + count] for start, count in zip(starts, counts, strict=True)]


def random_lists(kv_lens: list[int], num_lists: int, unit: int, width: int, fill: str) -> Lists:
    """Ascending units: `some` (0 to `width` of them), `most` (as many as fit, the last included) or `all`."""

    def one(kv_len: int) -> list[int]:
        units = -(-kv_len // unit)
        if fill == "all":
            return list(range(units))
        if fill == "most":
            return sorted([*random.sample(range(units - 1), min(width, units) - 1), units - 1])
        return sorted(random.sample(range(units), random.randint(0, min(width, units))))

    return [[one(kv_len) for _ in range(num_lists)] for kv_len in kv_lens]


def make_selections(
    kv_lens: list[int],
    unit: int = 1,
    num_lists: int = 2,
    width: int = 9,
    heads: tuple[int, int] = (4, 2),
    dim: int = 32,
    value_dim: int | None = None,
    page_size: int = 16,
    tables: str = "shuffled",
    fill: str = "some",
    layout: str = "NHD",
    dtype: torch.dtype = torch.float32,
    strided_query: bool = False,
    latent: bool = False,
) -> Selections:
    """Sequence b holds `kv_lens[b]` tokens; a list has room for `width` units (fill=all: for all)."""
    random.seed(int(torch.randint(2**31, ())))
    num_heads, num_kv_heads = heads
    value_dim = value_dim or dim
    if fill == "all":
        width = -(-max(kv_lens) // unit)
    chosen_tables = block_tables(tables, [-(-kv_len // page_size) for kv_len in kv_lens])
    num_pages = max(map(max, chosen_tables)) + 1

    def hidden(width: int) -> Tensor:
        if layout == "HND":
            shape = (num_pages, num_kv_heads, page_size, width)
            return torch.full(shape, torch.nan, dtype=dtype).transpose(1, 2)
        return torch.full((num_pages, page_size, num_kv_heads, width), torch.nan, dtype=dtype)

    key_cache = hidden(dim)
    value_cache = key_cache[..., :value_dim] if latent else hidden(value_dim)
    keys = torch.randn(key_cache.shape).to(dtype)
    values = keys[..., :value_dim] if latent else torch.randn(value_cache.shape).to(dtype)
    query = torch.randn(len(kv_lens), num_heads, dim).to(dtype)
    if strided_query:  # as [1, Hq, T, D] transposed back, with room between the heads
        wide = torch.full((num_heads, len(kv_lens), dim + 8), torch.nan, dtype=dtype)
        wide[..., :dim] = query.transpose(0, 1)
        query = wide[..., :dim].transpose(0, 1)
    made = Selections(
        query, key_cache, value_cache, keys, values,
        plan([1] * len(kv_lens), kv_lens, chosen_tables, page_size, "cpu"), chosen_tables, kv_lens,
        random_lists(kv_lens, num_lists, unit, width, fill), unit, page_size, width,
    )  # fmt: skip
    made.expose()
    return made
