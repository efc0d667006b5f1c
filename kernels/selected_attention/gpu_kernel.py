"""The kernels of selected_attention: query heads that share a list against one split of its tokens."""

import triton
import triton.language as tl

from headway.kernels.gpu_attend import attend_keys


@triton.jit  # type: ignore[untyped-decorator]
def attend_selected_kernel(  # type: ignore[no-untyped-def]
    query, key_cache, value_cache, out, lse, sinks, indices, kv_lens, block_table, active,
    scale, softcap, num_units,
    query_row, query_head, query_dim, key_page, key_token, key_head, key_dim,
    value_page, value_token, value_head, value_dim, out_split, out_row, out_head, out_dim,
    lse_split, lse_row, lse_head, list_row, list_head, list_unit, table_row, active_row,
    KEY_DIM: tl.constexpr, VALUE_DIM: tl.constexpr, GROUP_SIZE: tl.constexpr, ROWS: tl.constexpr,
    PAGE_SIZE: tl.constexpr, UNIT: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr, BLOCK_REST: tl.constexpr, BLOCK_V: tl.constexpr,
    SOFTCAP: tl.constexpr, SINKS: tl.constexpr, SHARED: tl.constexpr,
    ACTIVE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    TILES: tl.constexpr = (ROWS + BLOCK_M - 1) // BLOCK_M
    lane = tl.program_id(0) // TILES  # ROWS query heads of one KV head
    sequence = tl.program_id(1).to(tl.int64)
    split = tl.program_id(2)
    if ACTIVE:  # noqa: SIM102, a constant `if` around one on the device
        if tl.load(active + sequence * active_row) == 0:
            return
    kv_len = tl.load(kv_lens + sequence)

    rows = tl.program_id(0) % TILES * BLOCK_M + tl.arange(0, BLOCK_M)
    is_row = rows < ROWS
    head = lane * ROWS + rows
    kv_head = lane * ROWS // GROUP_SIZE
    dims = tl.arange(0, BLOCK_K)
    value_dims = tl.arange(0, BLOCK_V)
    query_cell = query + sequence * query_row + head * query_head
    q = tl.load(
        query_cell[:, None] + dims[None, :] * query_dim,
        mask=is_row[:, None] & (dims < KEY_DIM)[None, :],
        other=0.0,
    )
    q_rest = q
    rest_dims = dims
    if BLOCK_REST > 0:
        rest_dims = BLOCK_K + tl.arange(0, BLOCK_REST)
        q_rest = tl.load(
            query_cell[:, None] + rest_dims[None, :] * query_dim,
            mask=is_row[:, None] & (rest_dims < KEY_DIM)[None, :],
            other=0.0,
        )

    peak = tl.full([BLOCK_M], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    if SINKS:
        sink = tl.load(sinks + head, mask=is_row, other=0.0).to(tl.float32) * 1.4426950408889634
        peak = tl.where(split == 0, sink, float("-inf"))  # counted once, in the first split
        total += tl.where(split == 0, 1.0, 0.0)
    acc = tl.zeros([BLOCK_M, BLOCK_V], tl.float32)

    chosen = indices + sequence * list_row + lane * list_head
    table = block_table + sequence * table_row
    keys = key_cache + kv_head.to(tl.int64) * key_head
    values = value_cache + kv_head.to(tl.int64) * value_head
    # splits take turns, so that a list with much padding still divides evenly
    for tile in range(split, tl.cdiv(num_units * UNIT, BLOCK_N), tl.num_programs(2)):
        places = tile * BLOCK_N + tl.arange(0, BLOCK_N)
        entry = places // UNIT
        unit = tl.load(chosen + entry * list_unit, mask=entry < num_units, other=-1)
        tokens = unit * UNIT + places % UNIT
        seen = (unit >= 0) & (tokens < kv_len)
        acc, peak, total = attend_keys(
            acc, peak, total, q, q_rest, tokens, seen, kv_len - 1, table, keys, values,
            scale, softcap, key_page, key_token, key_dim, value_page, value_token, value_dim,
            dims, rest_dims, value_dims, KEY_DIM, VALUE_DIM, PAGE_SIZE, BLOCK_REST,
            False, SOFTCAP, SHARED, PRECISION,
        )  # fmt: skip

    some = total > 0.0
    total = tl.where(some, total, 1.0)
    out_cell = out + split.to(tl.int64) * out_split + sequence * out_row + head * out_head
    tl.store(
        out_cell[:, None] + value_dims[None, :] * out_dim,
        (acc / total[:, None]).to(out.dtype.element_ty),
        mask=is_row[:, None] & (value_dims < VALUE_DIM)[None, :],
    )
    tl.store(
        lse + split.to(tl.int64) * lse_split + sequence * lse_row + head * lse_head,
        tl.where(some, (peak + tl.log2(total)) * 0.6931471805599453, float("-inf")),
        mask=is_row,
    )


@triton.jit  # type: ignore[untyped-decorator]
def merge_splits_kernel(  # type: ignore[no-untyped-def]
    outs, lses, out, lse, active, num_splits,
    outs_split, outs_row, outs_head, outs_dim, lses_split, lses_row, lses_head,
    out_row, out_head, out_dim, lse_row, lse_head, active_row,
    DIM: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_S: tl.constexpr, CHUNK: tl.constexpr,
    ACTIVE: tl.constexpr,
):  # fmt: skip
    """One row and head: all weights first, then CHUNK parts at a time, so that their loads overlap."""
    sequence = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1)
    if ACTIVE:  # noqa: SIM102, a constant `if` around one on the device
        if tl.load(active + sequence * active_row) == 0:
            return
    dims = tl.arange(0, BLOCK_D)
    all_splits = tl.arange(0, BLOCK_S)
    part_lses = lses + sequence * lses_row + head * lses_head
    every = tl.load(part_lses + all_splits * lses_split, mask=all_splits < num_splits, other=float("-inf"))
    peak = tl.max(every, 0)
    base = tl.where(peak > float("-inf"), peak, 0.0)  # -inf - -inf is NaN
    total = tl.sum(tl.exp(every - base), 0)
    acc = tl.zeros([BLOCK_D], tl.float32)
    part_outs = outs + sequence * outs_row + head * outs_head + dims[None, :] * outs_dim
    for first in range(0, num_splits, CHUNK):
        splits = first + tl.arange(0, CHUNK)
        part_lse = tl.load(part_lses + splits * lses_split, mask=splits < num_splits, other=float("-inf"))
        part = tl.load(
            part_outs + splits.to(tl.int64)[:, None] * outs_split,
            mask=(splits < num_splits)[:, None] & (dims < DIM)[None, :],
            other=0.0,
        )
        acc += tl.sum(tl.exp(part_lse - base)[:, None] * part, 0)
    some = total > 0.0
    total = tl.where(some, total, 1.0)
    tl.store(
        out + sequence * out_row + head * out_head + dims * out_dim,
        (acc / total).to(out.dtype.element_ty),
        mask=dims < DIM,
    )
    tl.store(lse + sequence * lse_row + head * lse_head, tl.where(some, peak + tl.log(total), float("-inf")))
