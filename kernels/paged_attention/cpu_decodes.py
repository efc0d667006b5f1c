"""Decodes on a CPU: one compiled call for all of a batch, whatever their lengths and wherever their pages."""

import numpy as np
import torch
from torch import Tensor

from headway.kernels.cpu_attend import attend_all
from headway.kernels.cpu_pages import page_tables, strided, strided_rows
from headway.kernels.cpu_splits import Shares, in_splits, query_factor, shares_of, sink_rows
from headway.kernels.cpu_tile import Floats
from headway.kernels.paged_attention.plan import AttentionPlan, Numbers


def attend_decodes(
    query: Tensor, key_cache: Tensor, value_cache: Tensor, plan: AttentionPlan, rows: Numbers, scale: float,
    window: int | None, softcap: float | None, sinks: Tensor | None, new: tuple[Tensor, Tensor] | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """query `[R, Hq, Dk]` of the sequences `rows`; out `[R, Hq, Dv]` and lse `[R, Hq]` in fp32.

    new: key `[R, Hkv, Dk]` and value `[R, Hkv, Dv]`, which are stored as each sequence's last.
    """
    page_size, num_kv_heads, key_dim = key_cache.shape[1:]
    value_dim, group = value_cache.shape[3], query.shape[1] // num_kv_heads
    tables = page_tables(plan)
    token = num_kv_heads * (key_dim + value_dim)
    first_tokens, shares = plan.memo(
        ("cpu decodes", window, token), lambda: _shares(tables.kv_lens, rows, window, token)
    )
    queries, factor = strided_rows(query), query_factor(scale, softcap)
    sink_logits = sink_rows(sinks, num_kv_heads, group)
    (keys, key_strides), (values, value_strides) = strided(key_cache), strided(value_cache)
    nothing = keys[:0], (0, 0, 0)
    new_keys, new_values = (nothing, nothing) if new is None else map(strided_rows, new)

    def attend(part: slice, split: int, splits: int, out: Floats, lse: Floats) -> None:
        attend_all(
            split, splits, (part.start, part.stop), queries, factor, new_keys, new_values, keys, key_strides,
            values, value_strides, page_size, tables.pages, tables.starts, rows, first_tokens, tables.kv_lens,
            np.float32(softcap or 0.0), sink_logits, key_dim, out, lse,
        )  # fmt: skip

    out, lse = in_splits(attend, shares, (len(rows), num_kv_heads, group, value_dim))
    return torch.from_numpy(out).flatten(1, 2), torch.from_numpy(lse).flatten(1)


def _shares(kv_lens: Numbers, rows: Numbers, window: int | None, token: int) -> tuple[Numbers, Shares]:
    """Of each sequence the first token that its newest one sees, and how `rows` are shared out."""
    first_tokens = np.zeros_like(kv_lens) if window is None else np.maximum(kv_lens - window, 0)
    return first_tokens, shares_of((kv_lens - first_tokens)[rows] * token)
