"""The kernel of tile_attention: some rows of one tile against sinks, listed keys and the local part."""

import triton
import triton.language as tl

from headway.kernels.gpu_attend import attend_keys


@triton.jit  # type: ignore[untyped-decorator]
def attend_tile_kernel(  # type: ignore[no-untyped-def]
    query, key_cache, value_cache, out, lse, sinks, initial_out, initial_lse, local_from, spans, columns,
    span_ends, column_ends, kv_lens, block_table, scale, softcap, num_tokens, tile_size, blocks, sink_size,
    num_spans, span, num_columns, column_lists, column_share, local_lanes, span_lanes, column_lanes,
    query_token, query_head, query_dim, key_page, key_token, key_head, key_dim,
    value_page, value_token, value_head, value_dim, out_token, out_head, out_dim, lse_token, lse_head,
    initial_out_token, initial_out_head, initial_out_dim, initial_lse_token, initial_lse_head,
    KEY_DIM: tl.constexpr, VALUE_DIM: tl.constexpr, GROUP_SIZE: tl.constexpr, ROWS: tl.constexpr,
    PAGE_SIZE: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
    BLOCK_REST: tl.constexpr, BLOCK_V: tl.constexpr, LOCAL: tl.constexpr, SPANS: tl.constexpr,
    COLUMNS: tl.constexpr, INITIAL: tl.constexpr, SOFTCAP: tl.constexpr, SINKS: tl.constexpr,
    SHARED: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0)  # the other axes have room for 65,535 only, too few for a long chunk
    tl.assume(program < 16777216)  # not known of this axis, and without it ptxas spills
    lane = tl.program_id(1)  # ROWS query heads of one KV head
    num_tiles = tl.num_programs(0) // blocks
    tile = num_tiles - 1 - program // blocks  # the last tiles may be dense and the heaviest
    before = tl.load(kv_lens) - num_tokens  # position of the first query
    first_row = tile * tile_size
    last_row = tl.minimum(first_row + tile_size, num_tokens)

    first = program % blocks * BLOCK_M
    if first_row + first // ROWS >= last_row:  # the last tile is shorter
        return
    row = first + tl.arange(0, BLOCK_M)
    token = first_row + row // ROWS
    is_row = token < last_row
    head = lane * ROWS + row % ROWS
    kv_head = (lane * ROWS // GROUP_SIZE).to(tl.int64)
    position = before + token
    dims = tl.arange(0, BLOCK_K)
    value_dims = tl.arange(0, BLOCK_V)
    query_row = query + token.to(tl.int64) * query_token + head * query_head
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

    peak = tl.full([BLOCK_M], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    acc = tl.zeros([BLOCK_M, BLOCK_V], tl.float32)
    if INITIAL:
        initial_lse_row = initial_lse + token.to(tl.int64) * initial_lse_token + head * initial_lse_head
        peak = tl.load(initial_lse_row, mask=is_row, other=float("-inf")) * 1.4426950408889634
        total = tl.where(peak > float("-inf"), 1.0, 0.0)
        initial_row = initial_out + token.to(tl.int64) * initial_out_token + head * initial_out_head
        acc = tl.load(
            initial_row[:, None] + value_dims[None, :] * initial_out_dim,
            mask=is_row[:, None] & (value_dims < VALUE_DIM)[None, :],
            other=0.0,
        ).to(tl.float32)
    if SINKS:
        sink = tl.load(sinks + head, mask=is_row, other=0.0).to(tl.float32) * 1.4426950408889634
        new_peak = tl.maximum(peak, sink)
        keep = tl.exp2(peak - new_peak)
        acc = acc * keep[:, None]
        total = total * keep + tl.exp2(sink - new_peak)
        peak = new_peak

    keys = key_cache + kv_head * key_head
    values = value_cache + kv_head * value_head
    local = before + first_row  # the lists end here
    low = 0
    if LOCAL:
        low = sink_size
        local = tl.minimum(tl.load(local_from + lane // local_lanes * num_tiles + tile), local)
        local = tl.maximum(local, 0)
        end = tl.minimum(sink_size, local)
        for index in range(tl.cdiv(end, BLOCK_N)):
            tokens = index * BLOCK_N + tl.arange(0, BLOCK_N)
            acc, peak, total = attend_keys(
                acc, peak, total, q, q_rest, tokens, tokens < end, position, block_table, keys, values,
                scale, softcap, key_page, key_token, key_dim, value_page, value_token, value_dim,
                dims, rest_dims, value_dims, KEY_DIM, VALUE_DIM, PAGE_SIZE, BLOCK_REST,
                False, SOFTCAP, SHARED, PRECISION,
            )  # fmt: skip
    if SPANS:
        one = (lane // span_lanes).to(tl.int64) * num_tiles + tile
        chosen = spans + one * num_spans
        listed = tl.where(local > low, tl.load(span_ends + one), 0)
        for index in range(tl.cdiv(listed * span, BLOCK_N)):
            place = index * BLOCK_N + tl.arange(0, BLOCK_N)
            entry = place // span
            start = tl.load(chosen + entry, mask=entry < num_spans, other=-1)
            tokens = start + place % span
            seen = (start >= 0) & (tokens >= low) & (tokens < local)
            acc, peak, total = attend_keys(
                acc, peak, total, q, q_rest, tokens, seen, position, block_table, keys, values,
                scale, softcap, key_page, key_token, key_dim, value_page, value_token, value_dim,
                dims, rest_dims, value_dims, KEY_DIM, VALUE_DIM, PAGE_SIZE, BLOCK_REST,
                False, SOFTCAP, SHARED, PRECISION,
            )  # fmt: skip
    if COLUMNS:
        one = (lane // column_lanes).to(tl.int64) * column_lists + tile // column_share
        chosen = columns + one * num_columns
        listed = tl.where(local > low, tl.load(column_ends + one), 0)
        for index in range(tl.cdiv(listed, BLOCK_N)):
            entry = index * BLOCK_N + tl.arange(0, BLOCK_N)
            tokens = tl.load(chosen + entry, mask=entry < num_columns, other=-1)
            seen = (tokens >= low) & (tokens < local)
            acc, peak, total = attend_keys(
                acc, peak, total, q, q_rest, tokens, seen, position, block_table, keys, values,
                scale, softcap, key_page, key_token, key_dim, value_page, value_token, value_dim,
                dims, rest_dims, value_dims, KEY_DIM, VALUE_DIM, PAGE_SIZE, BLOCK_REST,
                False, SOFTCAP, SHARED, PRECISION,
            )  # fmt: skip
    if LOCAL:
        # every row sees the whole key tiles below `full`
        full = (before + first_row + first // ROWS + 1 - local) // BLOCK_N
        last = before + tl.minimum(first_row + (first + BLOCK_M - 1) // ROWS, last_row - 1)
        for index in range(full):
            tokens = local + index * BLOCK_N + tl.arange(0, BLOCK_N)
            acc, peak, total = attend_keys(
                acc, peak, total, q, q_rest, tokens, tokens >= 0, position, block_table, keys, values,
                scale, softcap, key_page, key_token, key_dim, value_page, value_token, value_dim,
                dims, rest_dims, value_dims, KEY_DIM, VALUE_DIM, PAGE_SIZE, BLOCK_REST,
                False, SOFTCAP, SHARED, PRECISION,
            )  # fmt: skip
        for index in range(full, tl.cdiv(last + 1 - local, BLOCK_N)):
            tokens = local + index * BLOCK_N + tl.arange(0, BLOCK_N)
            acc, peak, total = attend_keys(
                acc, peak, total, q, q_rest, tokens, tokens <= last, position, block_table, keys, values,
                scale, softcap, key_page, key_token, key_dim, value_page, value_token, value_dim,
                dims, rest_dims, value_dims, KEY_DIM, VALUE_DIM, PAGE_SIZE, BLOCK_REST,
                True, SOFTCAP, SHARED, PRECISION,
            )  # fmt: skip

    some = total > 0.0  # a row may read nothing
    total = tl.where(some, total, 1.0)
    out_row = out + token.to(tl.int64) * out_token + head * out_head
    tl.store(
        out_row[:, None] + value_dims[None, :] * out_dim,
        (acc / total[:, None]).to(out.dtype.element_ty),
        mask=is_row[:, None] & (value_dims < VALUE_DIM)[None, :],
    )
    tl.store(
        lse + token.to(tl.int64) * lse_token + head * lse_head,
        tl.where(some, (peak + tl.log2(total)) * 0.6931471805599453, float("-inf")),
        mask=is_row,
    )
