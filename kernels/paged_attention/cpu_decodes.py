"""Decodes on a CPU: one compiled call for all of a batch, whatever their lengths and wherever their pages."""

import numpy as np
import torch
from torch import Tensor

from headway.kernels.cpu_attend import attend_all
from headway.kernels.cpu_pages import page_tables, strided
from headway.kernels.cpu_splits import grouped, in_splits, query_factor, sink_rows
from headway.kernels.cpu_tile import Floats
from headway.kernels.paged_attention.plan import AttentionPlan, Numbers


def attend_decodes(
    query: Tensor, key_cache: Tensor, value_cache: Tensor, plan: AttentionPlan, rows: Numbers, scale: float,
    window: int | None, softcap: float | None, sinks: Tensor | None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """query `[R, Hq, Dk]` of the sequences `rows`; out `[R, Hq, Dv]` and lse `[R, Hq]` in fp32."""
    page_size, num_kv_heads, key_dim = key_cache.shape[1:]
    value_dim = value_cache.shape[3]
    tables = page_tables(plan)
    first_tokens, seen = plan.memo(("cpu decodes", window), lambda: _seen(tables.kv_lens, rows, window))
    groups, factor = grouped(query, num_kv_heads), query_factor(scale, softcap)
    sink_logits = sink_rows(sinks, num_kv_heads, groups.shape[2])
    (keys, key_strides), (values, value_strides) = strided(key_cache), strided(value_cache)

    def attend(split: int, splits: int, out: Floats, lse: Floats) -> None:
        attend_all(
            split, splits, groups, factor, keys, key_strides, values, value_strides, page_size, tables.pages,
            tables.starts, rows, first_tokens, tables.kv_lens, np.float32(softcap or 0.0), sink_logits, out,
            lse,
        )  # fmt: skip

    out, lse = in_splits(attend, seen * num_kv_heads * (key_dim + value_dim), (*groups.shape[:3], value_dim))
    return torch.from_numpy(out.reshape(len(rows), -1, value_dim)), torch.from_numpy(
        lse.reshape(len(rows), -1)
    )


def _seen(kv_lens: Numbers, rows: Numbers, window: int | None) -> tuple[Numbers, int]:
    """Of each sequence the first token that its newest one sees, and how many `rows` see together."""
    first_tokens = np.zeros_like(kv_lens) if window is None else np.maximum(kv_lens - window, 0)
    return first_tokens, int((kv_lens - first_tokens)[rows].sum())
