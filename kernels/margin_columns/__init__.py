"""margin_columns: which keys of a sequence any of a few queries scores high enough."""

from collections.abc import Callable
from functools import cache
from importlib import import_module

import torch
from torch import Tensor

from headway.kernels import checks, dispatch
from headway.kernels.paged_attention.plan import AttentionPlan

__all__ = ["margin_columns"]


def margin_columns(
    query: Tensor,
    limits: Tensor,
    key_cache: Tensor,
    plan: AttentionPlan,
    start: int,
    stop: int,
    *,
    scale: float = 1.0,
) -> Tensor:
    """Say of the keys at positions [start, stop) whether any of R queries reaches its limit with them.

    query `[R, Hq, D]` and key_cache `[num_pages, page_size, Hkv, D]`, any strides, one floating dtype; plan:
    one sequence of at least `stop` tokens, however many of them are queries. Query head h reads KV head
    h // (Hq // Hkv). limits fp32 `[R, Hq]`, any strides; inf or NaN: reached by no key, -inf: by every one.

    Returns bool `[Hq, stop - start]`: some row r has scale * q·k ≥ limits[r, h], accumulated in fp32.

    The probe of AnchorAttention (arXiv 2505.23520), whose rows are mean queries of a few tiles. Raises
    ValueError when an argument does not fit the others; nothing here makes the host wait for a GPU.
    """
    _check(query, limits, key_cache, plan, start, stop)
    if start == stop:
        return torch.zeros(query.shape[1], 0, dtype=torch.bool, device=query.device)
    run = _implementation(dispatch.version(query))
    return run(query, limits, key_cache, plan, start, stop, scale)


@cache
def _implementation(version: dispatch.Version) -> Callable[..., Tensor]:
    """Imported on first use: Triton may not be installed."""
    return import_module(f"{__name__}.{version}").margin_columns  # type: ignore[no-any-return]


def _check(
    query: Tensor, limits: Tensor, key_cache: Tensor, plan: AttentionPlan, start: int, stop: int
) -> None:
    checks.caches(key_cache, key_cache)
    checks.query_heads(query, "R", "key_cache", *key_cache.shape[2:])
    checks.floating_dtype(query=query, key_cache=key_cache)
    checks.one_device(query, limits=limits, key_cache=key_cache, plan=plan)
    checks.plan_pages(plan, key_cache)
    if query.shape[0] == 0:
        raise ValueError("query must have at least one row")
    if limits.dtype != torch.float32 or limits.shape != query.shape[:2]:
        wanted = f"float32 {tuple(query.shape[:2])}"
        raise ValueError(f"limits must be {wanted}, not {limits.dtype} {tuple(limits.shape)}")
    if len(plan.host_kv_lens) != 1:
        raise ValueError(f"plan must be of one sequence, not of {len(plan.host_kv_lens)}")
    if not 0 <= start <= stop <= plan.host_kv_lens[0]:
        raise ValueError(
            f"start and stop must lie in order in [0, {plan.host_kv_lens[0]}], not {start}, {stop}"
        )
