"""Checks of arguments that several kernels take alike. Each raises ValueError and names the argument."""

from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:  # paged_attention itself imports this module
    from headway.kernels.paged_attention.plan import AttentionPlan


def caches(key_cache: Tensor, value_cache: Tensor) -> None:
    """Both [num_pages, page_size, num_kv_heads, head_dim]; only their head_dim may differ."""
    key_shape, value_shape = key_cache.shape, value_cache.shape
    if len(key_shape) != 4 or len(value_shape) != 4 or key_shape[:3] != value_shape[:3]:
        raise ValueError(
            "key_cache and value_cache must be [num_pages, page_size, num_kv_heads, head_dim] alike, "
            f"not {tuple(key_shape)} and {tuple(value_shape)}"
        )


def query_heads(query: Tensor, rows: str, holder: str, num_kv_heads: int, dim: int) -> None:
    """The query [`rows`, a multiple of `num_kv_heads`, `dim`], of the KV heads that `holder` has."""
    shape = query.shape
    if len(shape) != 3 or shape[2] != dim:
        raise ValueError(f"query must be [{rows}, num_heads, {dim}], not {tuple(shape)}")
    if shape[1] == 0 or shape[1] % num_kv_heads:
        raise ValueError(f"query has {shape[1]} heads, no multiple of the {holder}'s {num_kv_heads} KV heads")


def floating_dtype(query: Tensor, **others: Tensor) -> None:
    """One floating dtype for all."""
    if not query.dtype.is_floating_point or {other.dtype for other in others.values()} != {query.dtype}:
        *names, last = "query", *others
        dtypes = ", ".join(str(tensor.dtype) for tensor in (query, *others.values()))
        raise ValueError(f"{', '.join(names)} and {last} must share a floating dtype, not {dtypes}")


def one_device(query: Tensor, **others: "Tensor | AttentionPlan") -> None:
    """All on the query's device."""
    if {other.device for other in others.values()} != {query.device}:
        elsewhere = (f"{name} on {other.device}" for name, other in others.items())
        raise ValueError(f"query is on {query.device}, {', '.join(elsewhere)}")


def plan_pages(plan: "AttentionPlan", key_cache: Tensor) -> None:
    """The plan's pages lie in the cache."""
    num_pages, page_size = key_cache.shape[:2]
    if plan.page_size != page_size or plan.max_page >= num_pages:
        raise ValueError(
            f"plan is for pages of {plan.page_size} tokens up to number {plan.max_page}, "
            f"key_cache has {num_pages} of {page_size}"
        )


def one_token_each(plan: "AttentionPlan", batch: int) -> None:
    """As many sequences as the query has rows, each with one new token."""
    if plan.num_tokens != batch or len(plan.host_kv_lens) != batch:
        raise ValueError(
            f"plan must be of {batch} sequences with one new token each, as query, "
            f"not of {len(plan.host_kv_lens)} with {plan.num_tokens}"
        )


def listed_units(
    query: Tensor,
    key_cache: Tensor,
    plan: "AttentionPlan",
    indices: Tensor,
    unit: int,
    *,
    per_query_head: bool,
) -> None:
    """One query of each sequence; its units int32 [B, 1 or Hkv lists, M], also Hq lists `per_query_head`."""
    shape, chosen = query.shape, indices.shape
    _, page_size, num_kv_heads, dim = key_cache.shape
    if len(shape) != 3 or shape[2] != dim or shape[1] == 0 or shape[1] % num_kv_heads:
        raise ValueError(f"query must be [B, a multiple of {num_kv_heads} heads, {dim}], not {tuple(shape)}")
    batch = shape[0]
    one_token_each(plan, batch)
    plan_pages(plan, key_cache)
    if unit < 1 or page_size % unit:
        raise ValueError(f"unit must divide the page size of {page_size}, not be {unit}")
    lists = (1, num_kv_heads, shape[1]) if per_query_head else (1, num_kv_heads)
    if (
        indices.dtype != torch.int32
        or len(chosen) != 3
        or chosen[0] != batch
        or chosen[1] not in lists
        or chosen[2] == 0
    ):
        raise ValueError(
            f"indices must be int32 [{batch}, {' or '.join(map(str, lists))}, at least 1], "
            f"not {indices.dtype} {tuple(chosen)}"
        )


def window_positive(window: int | None) -> None:
    """At least one key, or none."""
    if window is not None and window < 1:
        raise ValueError(f"window must be at least 1, not {window}")


def softcap_positive(softcap: float | None) -> None:
    """Above zero, or none."""
    if softcap is not None and softcap <= 0:
        raise ValueError(f"softcap must be positive, not {softcap}")


def sink_logits(sinks: Tensor | None, query: Tensor) -> None:
    """One logit for each query head, or none."""
    if sinks is not None and (sinks.shape != query.shape[1:2] or sinks.device != query.device):
        raise ValueError(f"sinks must be [{query.shape[1]}] on {query.device}, not {tuple(sinks.shape)}")


def active_rows(active: Tensor | None, query: Tensor) -> None:
    """A bool for each of the query's rows, or none."""
    if active is not None and (
        active.shape != query.shape[:1] or active.dtype != torch.bool or active.device != query.device
    ):
        got = f"{active.dtype} {tuple(active.shape)} on {active.device}"
        raise ValueError(f"active must be bool [{query.shape[0]}] on {query.device}, not {got}")


def result(
    name: str, given: Tensor | None, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device
) -> None:
    """A tensor to write the result to, or none."""
    if given is not None and (given.shape != shape or given.dtype != dtype or given.device != device):
        raise ValueError(
            f"{name} must be {shape} {dtype} on {device}, not {tuple(given.shape)} {given.dtype}"
        )
