"""Random decode groups over a paged table, and their scores by an oracle in fp64 that knows no pages."""

from dataclasses import dataclass

import torch
from torch import Tensor

from headway.kernels.paged_attention import AttentionPlan, plan


@dataclass
class ScoredGroup:
    query: Tensor
    table: Tensor
    plan: AttentionPlan
    rows: list[Tensor]  # [units of the sequence, Hkv, D]
    width: int

    def oracle(
        self,
        scale: float = 1.0,
        softcap: float | None = None,
        reduce: str = "none",
        active: Tensor | None = None,
    ) -> Tensor:
        batch, heads, _ = self.query.shape
        num_kv_heads = self.table.shape[2]
        group_size = heads // num_kv_heads
        out = torch.full((batch, heads, self.width), -torch.inf, dtype=torch.float64)
        for b, rows in enumerate(self.rows):
            if active is not None and not active[b]:
                continue
            for head in range(heads):
                scores = rows[:, head // group_size].double() @ self.query[b, head].double() * scale
                out[b, head, : len(rows)] = scores if softcap is None else softcap * (scores / softcap).tanh()
        if reduce == "none":
            return out
        heads_of = [out[:, h * group_size : (h + 1) * group_size] for h in range(num_kv_heads)]
        one = torch.Tensor.amax if reduce == "max" else torch.Tensor.mean
        return torch.stack([one(each, 1) for each in heads_of], 1)


def make_group(
    kv_lens: list[int],
    *,
    units: int = 16,
    page_size: int = 16,
    heads: tuple[int, int] = (4, 2),
    dim: int = 32,
    pages: str = "shuffled",
    layout: str = "NHD",
    dtype: torch.dtype = torch.float32,
) -> ScoredGroup:
    """Cells of the table that hold no unit of a sequence are NaN, those behind its last one included."""
    num_heads, num_kv_heads = heads
    counts = [-(-kv_len // page_size) for kv_len in kv_lens]
    num_pages = sum(counts) + 3
    free = list(range(num_pages))
    if pages == "shuffled":
        free = torch.randperm(num_pages).tolist()
    elif pages == "reversed":
        free.reverse()
    tables = []
    for count in counts:
        own, free = free[:count], free[count:]
        tables.append(own[count // 2 :] + own[: count // 2] if pages == "two-runs" else own)
    if layout == "NHD":
        table = torch.full((num_pages, units, num_kv_heads, dim), torch.nan, dtype=dtype)
    elif layout == "HND":
        table = torch.full((num_pages, num_kv_heads, units, dim), torch.nan, dtype=dtype).transpose(1, 2)
    else:  # part of a wider one, every second channel
        table = torch.full((num_pages, units, num_kv_heads + 1, 2 * dim), torch.nan, dtype=dtype)
        table = table[:, :, 1:, ::2]
    rows = []
    for kv_len, own in zip(kv_lens, tables, strict=True):
        made = torch.randn(-(-kv_len * units // page_size), num_kv_heads, dim).to(dtype)
        for n, row in enumerate(made):
            table[own[n // units], n % units] = row
        rows.append(made)
    wide = torch.full((num_heads, len(kv_lens), dim + 8), torch.nan, dtype=dtype)
    wide[..., :dim] = torch.randn(num_heads, len(kv_lens), dim).to(dtype)
    group = plan([1] * len(kv_lens), kv_lens, tables, page_size, "cpu")
    return ScoredGroup(wide[..., :dim].transpose(0, 1), table, group, rows, units * max(counts))
