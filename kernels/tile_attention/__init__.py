"""tile_attention: sparse causal attention of a prompt's chunk, tile of queries by tile."""

from torch import Tensor

from headway.kernels.paged_attention.plan import AttentionPlan
from headway.kernels.tile_attention import reference

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
    return reference.tile_attention(
        query, key_cache, value_cache, plan, tile, local_from, sink_size, spans, span, columns, scale,
        softcap, sinks, initial, out,
    )  # fmt: skip
