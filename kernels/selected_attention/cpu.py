"""selected_attention on a CPU: one compiled call for all of a batch, whatever its lists name."""

import numpy as np
import torch
from torch import Tensor

from headway.kernels.cpu_attend import attend_listed
from headway.kernels.cpu_pages import page_tables, strided
from headway.kernels.cpu_splits import grouped, in_splits, query_factor, shares_of, sink_rows
from headway.kernels.cpu_tile import Floats
from headway.kernels.paged_attention.plan import AttentionPlan, Numbers


def selected_attention(
    query: Tensor, key_cache: Tensor, value_cache: Tensor, plan: AttentionPlan, indices: Tensor, unit: int,
    scale: float, softcap: float | None, sinks: Tensor | None, active: Tensor | None, out: Tensor | None,
    lse: Tensor | None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    page_size, num_kv_heads, key_dim = key_cache.shape[1:]
    value_dim = value_cache.shape[3]
    _, num_lists, width = indices.shape
    tables = page_tables(plan)
    rows = np.arange(len(query)) if active is None else np.flatnonzero(active.numpy())
    lanes = max(num_lists, num_kv_heads)
    groups, factor = grouped(query, lanes), query_factor(scale, softcap)
    sink_logits = sink_rows(sinks, lanes, groups.shape[2])
    (keys, key_strides), (values, value_strides) = strided(key_cache), strided(value_cache)
    lists = indices.contiguous().numpy()

    def attend(part: slice, split: int, splits: int, new_out: Floats, new_lse: Floats) -> None:
        wrong = attend_listed(
            split, splits, groups, factor, keys, key_strides, values, value_strides, page_size, tables.pages,
            tables.starts, rows[part], lists, unit, num_kv_heads, tables.kv_lens, np.float32(softcap or 0.0),
            sink_logits, new_out, new_lse,
        )  # fmt: skip
        if wrong >= 0:
            raise ValueError(
                f"indices[{wrong}] names unit {lists[wrong].max()}, of {unit} tokens each, "
                f"in a sequence of {tables.kv_lens[wrong]} tokens"
            )

    shares = shares_of(np.full(len(rows), lanes * width * unit * (key_dim + value_dim)))
    new_out, new_lse = (
        torch.from_numpy(new.reshape(len(query), -1, *new.shape[3:]))
        for new in in_splits(attend, shares, (*groups.shape[:3], value_dim))
    )
    return _into(out, new_out.to(query.dtype), rows), _into(lse, new_lse, rows)


def _into(given: Tensor | None, new: Tensor, rows: Numbers) -> Tensor:
    if given is None:
        return new
    if len(rows) == len(new):
        return given.copy_(new)
    given[rows] = new[rows]
    return given
