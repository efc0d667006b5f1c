"""Mean queries with limits over one paged sequence, and an oracle in fp64 that knows no pages."""

from dataclasses import dataclass

import torch
from torch import Tensor

from headway.kernels.margin_columns import margin_columns
from headway.kernels.paged_attention import AttentionPlan

from .conftest import make_batch


@dataclass
class MarginCase:
    query: Tensor
    limits: Tensor
    key_cache: Tensor
    plan: AttentionPlan
    keys: Tensor  # [N, Hkv, D]

    def check(self, start: int, stop: int, scale: float) -> None:
        kept = margin_columns(self.query, self.limits, self.key_cache, self.plan, start, stop, scale=scale)
        heads = self.query.shape[1]
        assert kept.shape == (heads, stop - start)
        assert kept.dtype == torch.bool
        for head in range(heads):
            key = self.keys[start:stop, head // (heads // self.keys.shape[1])].double()
            scores = self.query[:, head].double() @ key.T * scale
            margin = (scores - self.limits[:, head, None]).amax(0)
            decided = margin.abs() > 1e-4
            assert kept[head, decided].equal(margin[decided] > 0)


def make_case(
    rows: int, kv_len: int, *, heads: tuple[int, int] = (4, 2), dim: int = 32, page_size: int = 16,
    pages: str = "shuffled", layout: str = "NHD", dtype: torch.dtype = torch.float32,
) -> MarginCase:  # fmt: skip
    """Limits about where every second score lies for some rows, and none for others."""
    made = make_batch(
        [(1, kv_len)], heads=heads, dim=dim, page_size=page_size, pages=pages, layout=layout, dtype=dtype
    )
    wide = torch.full((heads[0], rows, dim + 8), torch.nan, dtype=dtype)
    wide[..., :dim] = torch.randn(heads[0], rows, dim).to(dtype)
    limits = (2 * torch.randn(heads[0], rows)).T
    return MarginCase(wide[..., :dim].transpose(0, 1), limits, made.key_cache, made.plan, made.keys[0])
