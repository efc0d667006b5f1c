"""unit_scores: the probe. One dot product per query head and unit of a sequence, over a paged table."""

from collections.abc import Callable
from functools import cache
from importlib import import_module
from typing import Literal

import torch
from torch import Tensor

from headway.kernels import checks, dispatch
from headway.kernels.paged_attention.plan import AttentionPlan

__all__ = ["Reduction", "bound_query", "unit_scores"]

Reduction = Literal["none", "max", "mean"]


def unit_scores(
    query: Tensor,
    table: Tensor,
    plan: AttentionPlan,
    *,
    scale: float = 1.0,
    softcap: float | None = None,
    reduce: Reduction = "none",
    active: Tensor | None = None,
) -> Tensor:
    """Score every unit of B sequences that bring one query each.

    query `[B, Hq, D]` and table `[num_pages, units, Hkv, D]`, any strides, one floating dtype, or a float32
    query and a bfloat16 table. The table is paged as the KV cache is and holds `units` rows per page, a
    divisor of the page size: the keys themselves (units = page_size), a summary of each page (units = 1),
    keys in fewer dimensions. Query head h reads KV head h // (Hq // Hkv).

    Returns fp32 `[B, Hq, N]`, N = units * the plan's largest number of pages: scale * q·row, accumulated in
    fp32; `softcap` then replaces s by tanh(s / softcap) * softcap. `reduce` takes the maximum or the mean
    over the query heads of each KV head and returns `[B, Hkv, N]`. Unit n is the sequence's n-th, wherever
    its page lies. -inf stands at the units past ceil(kv_len * units / page_size), whatever the table holds
    there, and in all of a row b whose `active[b]` (bool `[B]`) is False.

    Raises ValueError when an argument does not fit the others; nothing here makes the host wait for a GPU.
    """
    _check(query, table, plan, softcap, reduce, active)
    run = _implementation(dispatch.version(query))
    return run(query, table, plan, scale, softcap, reduce, active)


def bound_query(query: Tensor) -> Tensor:
    """The query `[B, Hq, 2D]` that turns `unit_scores` over bounds into Quest's upper bound of q·k.

    Of a page whose keys lie channel by channel between `low` and `high`, no key scores more than
    sum_d max(q_d * low_d, q_d * high_d) (Quest, arXiv 2406.10774): positive channels meet `high`, negative
    ones `low`. So [max(q, 0) | min(q, 0)] · [high | low] is that bound; `page_summary` writes [high | low].
    """
    return torch.cat((query.clamp_min(0), query.clamp_max(0)), -1)


@cache
def _implementation(version: dispatch.Version) -> Callable[..., Tensor]:
    """Imported on first use: Triton may not be installed."""
    return import_module(f"{__name__}.{version}").unit_scores  # type: ignore[no-any-return]


def _check(
    query: Tensor, table: Tensor, plan: AttentionPlan, softcap: float | None, reduce: Reduction,
    active: Tensor | None,
) -> None:  # fmt: skip
    if len(table.shape) != 4:
        raise ValueError(f"table must be [num_pages, units, num_kv_heads, dim], not {tuple(table.shape)}")
    num_pages, units, num_kv_heads, dim = table.shape
    checks.query_heads(query, "B", "table", num_kv_heads, dim)
    if (query.dtype, table.dtype) != (torch.float32, torch.bfloat16):
        checks.floating_dtype(query, table=table)
    checks.one_device(query, table=table, plan=plan)
    if plan.num_tokens != len(plan.host_q_lens):
        raise ValueError("plan must bring one query per sequence, as decodes do")
    if plan.num_tokens != query.shape[0]:
        raise ValueError(f"query has {query.shape[0]} rows, plan {plan.num_tokens} sequences")
    if units < 1 or plan.page_size % units:
        raise ValueError(f"table has {units} units per page, no divisor of plan's {plan.page_size} tokens")
    if plan.max_page >= num_pages:
        raise ValueError(f"plan has pages up to number {plan.max_page}, table has {num_pages}")
    checks.softcap_positive(softcap)
    if reduce not in ("none", "max", "mean"):
        raise ValueError(f"reduce must be none, max or mean, not {reduce!r}")
    checks.active_rows(active, query)
