"""tile_attention: sparse causal attention of a prompt's chunk, tile of queries by tile."""

from collections.abc import Callable
from functools import cache
from importlib import import_module

import torch
from torch import Tensor

from headway.kernels import checks, dispatch
from headway.kernels.paged_attention.plan import AttentionPlan

__all__ = ["tile_attention"]


def tile_attention(
    query: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    plan: AttentionPlan,
    tile: int,
    *,
    scale: float,
    local_from: Tensor | None = None,
    sink_size: int = 0,
    spans: Tensor | None = None,
    span: int = 1,
    columns: Tensor | None = None,
    softcap: float | None = None,
    sinks: Tensor | None = None,
    initial: tuple[Tensor, Tensor] | None = None,
    out: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Attend the T queries of one sequence's chunk to the keys chosen for their tiles.

    query `[T, Hq, Dk]`, any strides; key_cache `[num_pages, page_size, Hkv, Dk]` and value_cache
    `[num_pages, page_size, Hkv, Dv]`, any strides (value_cache may be a view of key_cache), all of one
    floating dtype; plan: one sequence that brings T tokens, the last of its kv_len. Query head h reads KV
    head h // (Hq // Hkv). The queries are cut into tiles of `tile` rows from the chunk's first row on, the
    last one may be shorter. All rows of a tile read the same keys, as far as they are no later than the row:

    - local_from int32 `[H, tiles]`: every key from this position on, up to the row itself. Clamped to the
      tile's first row, so the diagonal is always read. None: neither local part nor sinks, not even the
      diagonal (the lists of a second pass; see `initial`).
    - sink_size: the first keys of the sequence.
    - spans int32 `[H, tiles, K]`: keys [s, s + span) for each s ≥ 0, at any token, aligned or not.
    - columns int32 `[H, lists, M]`: single keys j ≥ 0; list i serves the tiles from i * ceil(tiles / lists).

    Each H is 1, Hkv or Hq. Negative entries, which may stand anywhere, are skipped. Listed keys that the
    local part or the sinks hold are read once, those at or beyond the tile's first row not by the lists at
    all, those beyond it never. A span may reach over the end of the room left to the lists: the rest of it is
    read. Spans and columns of one tile must not name a key twice.

    `softcap` and `sinks` as in `paged_attention`. `initial`: (out `[T, Hq, Dv]`, lse `[T, Hq]`) of the same
    queries over other keys; the result is that of all keys together.

    Returns out `[T, Hq, Dv]` in the query's dtype (`out` itself when given) and lse `[T, Hq]` fp32, natural
    log; a row that reads nothing has zeros and -inf. Raises ValueError when an argument does not fit the
    others; nothing here makes the host wait for a GPU.
    """
    _check(query, key_cache, value_cache, plan, softcap, sinks)
    _check_lists(query, key_cache, plan, tile, local_from, sink_size, spans, span, columns)
    shape, device = (*query.shape[:2], value_cache.shape[3]), query.device
    if initial is not None:
        checks.result("initial[0]", initial[0], shape, query.dtype, device)
        checks.result("initial[1]", initial[1], shape[:2], torch.float32, device)
    checks.result("out", out, shape, query.dtype, device)
    run = _implementation(dispatch.version(query))
    return run(
        query, key_cache, value_cache, plan, tile, local_from, sink_size, spans, span, columns, scale,
        softcap, sinks, initial, out,
    )  # fmt: skip


@cache
def _implementation(version: dispatch.Version) -> Callable[..., tuple[Tensor, Tensor]]:
    """Imported on first use: Triton may not be installed."""
    return import_module(f"{__name__}.{version}").tile_attention  # type: ignore[no-any-return]


def _check(
    query: Tensor, key_cache: Tensor, value_cache: Tensor, plan: AttentionPlan,
    softcap: float | None, sinks: Tensor | None,
) -> None:  # fmt: skip
    checks.caches(key_cache, value_cache)
    num_kv_heads, key_dim = key_cache.shape[2:]
    checks.query_heads(query, "T", "cache", num_kv_heads, key_dim)
    checks.floating_dtype(query=query, key_cache=key_cache, value_cache=value_cache)
    checks.one_device(query, key_cache=key_cache, value_cache=value_cache, plan=plan)
    if len(plan.host_q_lens) != 1 or plan.num_tokens != query.shape[0]:
        raise ValueError(
            f"plan must be of one sequence that brings {query.shape[0]} tokens, as query, "
            f"not of {len(plan.host_q_lens)} with {plan.num_tokens}"
        )
    checks.plan_pages(plan, key_cache)
    checks.softcap_positive(softcap)
    checks.sink_logits(sinks, query)


def _check_lists(
    query: Tensor, key_cache: Tensor, plan: AttentionPlan, tile: int, local_from: Tensor | None,
    sink_size: int, spans: Tensor | None, span: int, columns: Tensor | None,
) -> None:  # fmt: skip
    for name, number, least in (("tile", tile, 1), ("sink_size", sink_size, 0), ("span", span, 1)):
        if number < least:
            raise ValueError(f"{name} must be at least {least}, not {number}")
    heads, tiles = {1, key_cache.shape[2], query.shape[1]}, -(-plan.num_tokens // tile)
    for name, given, shape, lists in (
        ("local_from", local_from, f"{tiles}", {tiles}),
        ("spans", spans, f"{tiles}, K", {tiles}),
        ("columns", columns, f"1 to {tiles}, M", range(1, tiles + 1)),
    ):
        if given is None:
            continue
        sizes = given.shape
        fits = len(sizes) == 1 + len(shape.split(", ")) and sizes[0] in heads and sizes[1] in lists
        if given.dtype != torch.int32 or not fits:
            allowed = " or ".join(map(str, sorted(heads)))
            raise ValueError(f"{name} must be int32 [{allowed}, {shape}], not {given.dtype} {tuple(sizes)}")
        checks.one_device(query, **{name: given})
