"""unit_scores: the probe. One dot product per query head and unit of a sequence, over a paged table."""

from collections.abc import Callable
from functools import cache
from importlib import import_module
from typing import Literal

import torch
from torch import Tensor

from headway.kernels import dispatch
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

    query `[B, Hq, D]` and table `[num_pages, units, Hkv, D]`, any strides, one floating dtype. The table is
    paged as the KV cache is and holds `units` rows per page, a divisor of the page size: the keys themselves
    (units = page_size), a summary of each page (units = 1), keys in fewer dimensions. Query head h reads KV
    head h // (Hq // Hkv).

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
    shape, table_shape = query.shape, table.shape
    if len(table_shape) != 4:
        raise ValueError(f"table must be [num_pages, units, num_kv_heads, dim], not {tuple(table_shape)}")
    num_pages, units, num_kv_heads, dim = table_shape
    if len(shape) != 3 or shape[2] != dim:
        raise ValueError(f"query must be [B, num_heads, {dim}], not {tuple(shape)}")
    if shape[1] == 0 or shape[1] % num_kv_heads:
        raise ValueError(f"query has {shape[1]} heads, no multiple of the table's {num_kv_heads} KV heads")
    if not query.dtype.is_floating_point or query.dtype != table.dtype:
        raise ValueError(f"query and table must share a floating dtype, not {query.dtype}, {table.dtype}")
    if not query.device == table.device == plan.device:
        raise ValueError(f"query is on {query.device}, table on {table.device}, plan on {plan.device}")
    if plan.num_tokens != len(plan.host_q_lens):
        raise ValueError("plan must bring one query per sequence, as decodes do")
    if plan.num_tokens != shape[0]:
        raise ValueError(f"query has {shape[0]} rows, plan {plan.num_tokens} sequences")
    if units < 1 or plan.page_size % units:
        raise ValueError(f"table has {units} units per page, no divisor of plan's {plan.page_size} tokens")
    if plan.max_page >= num_pages:
        raise ValueError(f"plan has pages up to number {plan.max_page}, table has {num_pages}")
    if softcap is not None and softcap <= 0:
        raise ValueError(f"softcap must be positive, not {softcap}")
    if reduce not in ("none", "max", "mean"):
        raise ValueError(f"reduce must be none, max or mean, not {reduce!r}")
    if active is not None and (
        active.shape != shape[:1] or active.dtype != torch.bool or active.device != query.device
    ):
        got = f"{active.dtype} {tuple(active.shape)} on {active.device}"
        raise ValueError(f"active must be bool [{shape[0]}] on {query.device}, not {got}")
