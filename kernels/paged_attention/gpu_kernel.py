"""The attention kernel: rows of one KV head against one split of its keys, online softmax in base 2."""

import triton
import triton.language as tl


@triton.jit  # type: ignore[untyped-decorator]
def attend_kernel(  # type: ignore[no-untyped-def]
    query, key_cache, value_cache, out, lse, sinks, cu_seqlens_q, kv_lens, block_table, tiles, scale, window,
    softcap, query_token, query_head, query_dim, key_page, key_token, key_head, key_dim, value_page,
    value_token, value_head, value_dim, out_split, out_token, out_head, out_dim, lse_split, lse_token,
    lse_head, table_row, KEY_DIM: tl.constexpr, VALUE_DIM: tl.constexpr, GROUP_SIZE: tl.constexpr, PAGE_SIZE:
    tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_REST:
    tl.constexpr, BLOCK_V: tl.constexpr, SPLIT: tl.constexpr, WINDOW: tl.constexpr, SOFTCAP: tl.constexpr,
    SINKS: tl.constexpr, SHARED: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    tile = tiles + tl.program_id(0) * 3  # the other axes have room for 65,535 only
    kv_head = tl.program_id(1)
    split = tl.program_id(2)
    sequence = tl.load(tile)
    first_row = tl.load(tile + 1)
    q_start = tl.load(cu_seqlens_q + sequence)
    q_len = tl.load(cu_seqlens_q + sequence + 1) - q_start
    kv_len = tl.load(kv_lens + sequence)
    before = kv_len - q_len  # position of the sequence's first query

    rows = first_row + tl.arange(0, BLOCK_M)
    q_index = rows // GROUP_SIZE
    head = kv_head * GROUP_SIZE + rows % GROUP_SIZE
    is_row = q_index < q_len
    position = before + q_index
    dims = tl.arange(0, BLOCK_K)
    value_dims = tl.arange(0, BLOCK_V)
    query_row = query + (q_start + q_index).to(tl.int64) * query_token + head * query_head
    q = tl.load(
        query_row[:, None] + dims[None, :] * query_dim,
        mask=is_row[:, None] & (dims < KEY_DIM)[None, :],
        other=0.0,
    )
    q_rest = q
    rest_dims = dims
    if BLOCK_REST > 0:
        rest_dims = BLOCK_K + tl.arange(0, BLOCK_REST)
        q_rest = tl.load(
            query_row[:, None] + rest_dims[None, :] * query_dim,
            mask=is_row[:, None] & (rest_dims < KEY_DIM)[None, :],
            other=0.0,
        )

    # key tiles [low, high) hold keys that some row sees; below `full` every row sees every key
    first_position = before + first_row // GROUP_SIZE
    last_position = before + tl.minimum((first_row + BLOCK_M - 1) // GROUP_SIZE, q_len - 1)
    low = 0
    if WINDOW:
        low = tl.maximum(first_position - window + 1, 0) // BLOCK_N
    high = tl.cdiv(last_position + 1, BLOCK_N)
    full = low if WINDOW else (first_position + 1) // BLOCK_N
    if SPLIT:
        share = tl.cdiv(high - low, tl.num_programs(2))
        low = low + split * share
        high = tl.minimum(low + share, high)
        full = tl.minimum(full, high)

    peak = tl.full([BLOCK_M], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    if SINKS:
        sink = tl.load(sinks + head, mask=is_row, other=0.0).to(tl.float32) * 1.4426950408889634
        if SPLIT:  # counted once, in the first split
            sink = tl.where(split == 0, sink, float("-inf"))
            total += tl.where(split == 0, 1.0, 0.0)
        else:
            total += 1.0
        peak = sink
    acc = tl.zeros([BLOCK_M, BLOCK_V], tl.float32)

    table = block_table + sequence.to(tl.int64) * table_row
    keys = key_cache + kv_head * key_head
    values = value_cache + kv_head * value_head
    for index in range(low, full):
        acc, peak, total = _key_tile(
            acc, peak, total, q, q_rest, index, table, keys, values, position, kv_len, scale, window, softcap,
            key_page, key_token, key_dim, value_page, value_token, value_dim, dims, rest_dims, value_dims,
            KEY_DIM, VALUE_DIM, PAGE_SIZE, BLOCK_N, BLOCK_K, BLOCK_REST, BLOCK_V,
            False, WINDOW, SOFTCAP, SHARED, PRECISION,
        )  # fmt: skip
    for index in range(tl.maximum(low, full), high):
        acc, peak, total = _key_tile(
            acc, peak, total, q, q_rest, index, table, keys, values, position, kv_len, scale, window, softcap,
            key_page, key_token, key_dim, value_page, value_token, value_dim, dims, rest_dims, value_dims,
            KEY_DIM, VALUE_DIM, PAGE_SIZE, BLOCK_N, BLOCK_K, BLOCK_REST, BLOCK_V,
            True, WINDOW, SOFTCAP, SHARED, PRECISION,
        )  # fmt: skip

    some = total > 0.0  # a split without keys has none
    total = tl.where(some, total, 1.0)
    acc = acc / total[:, None]
    row_lse = tl.where(some, (peak + tl.log2(total)) * 0.6931471805599453, float("-inf"))
    row_start = tl.load(tile + 2) if SPLIT else q_start
    token = (row_start + q_index).to(tl.int64)
    out_row = out + split.to(tl.int64) * out_split + token * out_token + head * out_head
    tl.store(
        out_row[:, None] + value_dims[None, :] * out_dim,
        acc.to(out.dtype.element_ty),
        mask=is_row[:, None] & (value_dims < VALUE_DIM)[None, :],
    )
    tl.store(lse + split.to(tl.int64) * lse_split + token * lse_token + head * lse_head, row_lse, mask=is_row)


@triton.jit  # type: ignore[untyped-decorator]
def _key_tile(  # type: ignore[no-untyped-def]
    acc, peak, total, q, q_rest, index, table, keys, values, position, kv_len, scale, window, softcap,
    key_page, key_token, key_dim, value_page, value_token, value_dim, dims, rest_dims, value_dims,
    KEY_DIM: tl.constexpr, VALUE_DIM: tl.constexpr, PAGE_SIZE: tl.constexpr, BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr, BLOCK_REST: tl.constexpr, BLOCK_V: tl.constexpr,
    MASKED: tl.constexpr, WINDOW: tl.constexpr, SOFTCAP: tl.constexpr, SHARED: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    tokens = index * BLOCK_N + tl.arange(0, BLOCK_N)
    stored = tokens < kv_len
    if MASKED:
        page = tl.load(table + tokens // PAGE_SIZE, mask=stored, other=0).to(tl.int64)
    else:
        page = tl.load(table + tokens // PAGE_SIZE).to(tl.int64)  # int64: a pool can exceed 2^31 elements
    offset = tokens % PAGE_SIZE

    key_rows = keys + page * key_page + offset * key_token
    k = _rows(key_rows, dims, key_dim, stored, KEY_DIM, BLOCK_K, MASKED)  # [N, K]
    scores = tl.dot(q, tl.trans(k), input_precision=PRECISION)
    if BLOCK_REST > 0:
        k_rest = _rows(key_rows, rest_dims, key_dim, stored, KEY_DIM, BLOCK_K + BLOCK_REST, MASKED)
        scores = tl.dot(q_rest, tl.trans(k_rest), scores, input_precision=PRECISION)
    scores = scores * scale
    if SOFTCAP:  # tanh(x) = 1 - 2 / (exp(2x) + 1)
        scores = softcap * (1.0 - 2.0 / (tl.exp2(scores * (2.885390081777927 / softcap)) + 1.0))
    scores = scores * 1.4426950408889634
    if MASKED:
        seen = tokens[None, :] <= position[:, None]
        if WINDOW:
            seen = seen & (tokens[None, :] > position[:, None] - window)
        scores = tl.where(seen & stored[None, :], scores, float("-inf"))

    new_peak = tl.maximum(peak, tl.max(scores, 1))
    base = new_peak
    if MASKED:  # a row may have seen no key yet, and -inf - -inf is NaN
        base = tl.where(new_peak > float("-inf"), new_peak, 0.0)
    keep = tl.exp2(peak - base)
    weights = tl.exp2(scores - base[:, None])
    if SHARED:
        v = k
    else:
        v = _rows(
            values + page * value_page + offset * value_token,
            value_dims,
            value_dim,
            stored,
            VALUE_DIM,
            BLOCK_V,
            MASKED,
        )  # [N, V]
    acc = tl.dot(weights.to(v.dtype), v, acc * keep[:, None], input_precision=PRECISION)
    return acc, new_peak, total * keep + tl.sum(weights, 1)


@triton.jit  # type: ignore[untyped-decorator]
def _rows(  # type: ignore[no-untyped-def]
    rows, dims, stride, stored, DIM: tl.constexpr, BLOCK_END: tl.constexpr, MASKED: tl.constexpr
):  # fmt: skip
    """One row of the cache per key; unused cells may hold NaN, so what is masked is never read."""
    cells = rows[:, None] + dims[None, :] * stride
    if MASKED:
        return tl.load(cells, mask=stored[:, None] & (dims < DIM)[None, :], other=0.0)
    if BLOCK_END > DIM:
        return tl.load(cells, mask=(dims < DIM)[None, :], other=0.0)
    return tl.load(cells)
