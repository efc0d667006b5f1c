"""antidiagonal: the probe of XAttention. How a chunk's attention spreads over blocks of keys, estimated."""

from collections.abc import Callable
from functools import cache
from importlib import import_module

from torch import Tensor

from headway.kernels import checks, dispatch
from headway.kernels.paged_attention.plan import AttentionPlan

__all__ = ["antidiagonal_mass"]


def antidiagonal_mass(
    query: Tensor,
    key_cache: Tensor,
    plan: AttentionPlan,
    block: int,
    stride: int,
    *,
    scale: float,
    softcap: float | None = None,
) -> Tensor:
    """Estimate the attention that the T queries of one sequence's chunk give to each block of keys.

    query `[T, Hq, D]` and key_cache `[num_pages, page_size, Hkv, D]`, any strides, one floating dtype; plan:
    one sequence that brings T tokens, the last of its kv_len, the first of them at a multiple of `block`.
    Query head h reads KV head h // (Hq // Hkv). `block` is a multiple of `stride`.

    Tokens are taken in groups of `stride`. Query group i scores key group j <= i by
    scale / stride * sum over r of q[i * stride + stride - 1 - r] · k[j * stride + r], the products along one
    antidiagonal (XAttention, arXiv 2503.16428): every key and every query counts once, where all pairs would
    be stride times as many. Of a group that the sequence's end cuts, what is there counts, and the mean is
    over the queries that are there. `softcap` then replaces s by tanh(s / softcap) * softcap. A softmax over
    the groups j <= i follows. With stride 1 all that is the exact causal attention.

    Returns fp32 `[Hq, ceil(T / block), ceil(kv_len / block)]`: the mean over the query groups of each block
    of rows of their mass in each block of keys; every row sums to 1, blocks in the future have 0.

    Raises ValueError when an argument does not fit the others; nothing here makes the host wait for a GPU.
    """
    _check(query, key_cache, plan, block, stride, softcap)
    run = _implementation(dispatch.version(query))
    return run(query, key_cache, plan, block, stride, scale, softcap)


@cache
def _implementation(version: dispatch.Version) -> Callable[..., Tensor]:
    """Imported on first use: Triton may not be installed."""
    return import_module(f"{__name__}.{version}").antidiagonal_mass  # type: ignore[no-any-return]


def _check(
    query: Tensor, key_cache: Tensor, plan: AttentionPlan, block: int, stride: int, softcap: float | None
) -> None:
    if key_cache.ndim != 4:
        raise ValueError(
            f"key_cache must be [num_pages, page_size, num_kv_heads, dim], not {tuple(key_cache.shape)}"
        )
    checks.query_heads(query, "T", "key_cache", key_cache.shape[2], key_cache.shape[3])
    checks.floating_dtype(query=query, key_cache=key_cache)
    checks.one_device(query, key_cache=key_cache, plan=plan)
    checks.plan_pages(plan, key_cache)
    checks.softcap_positive(softcap)
    if len(plan.host_q_lens) != 1 or plan.num_tokens != len(query):
        raise ValueError(
            f"plan must be of one sequence with {len(query)} new tokens, as query, "
            f"not of {len(plan.host_q_lens)} with {plan.num_tokens}"
        )
    if stride < 1 or block < 1 or block % stride:
        raise ValueError(f"block must be a positive multiple of stride = {stride}, not {block}")
    first = plan.host_kv_lens[0] - plan.num_tokens
    if first % block:
        raise ValueError(f"plan must bring tokens from a multiple of block = {block} on, not from {first}")
