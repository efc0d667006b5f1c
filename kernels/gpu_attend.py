"""One step of attention on a GPU: keys anywhere in a paged cache, folded into a running softmax."""

import triton
import triton.language as tl


@triton.jit  # type: ignore[untyped-decorator]
def attend_keys(  # type: ignore[no-untyped-def]
    acc, peak, total, q, q_rest, tokens, seen, position, table, keys, values,
    scale, softcap, key_page, key_token, key_dim, value_page, value_token, value_dim,
    dims, rest_dims, value_dims, KEY_DIM: tl.constexpr, VALUE_DIM: tl.constexpr, PAGE_SIZE: tl.constexpr,
    BLOCK_REST: tl.constexpr, CAUSAL: tl.constexpr, SOFTCAP: tl.constexpr, SHARED: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Fold in one tile of keys at any tokens; only the `seen` are read, if CAUSAL by rows no earlier.

    q `[M, K]`; acc `[M, V]`, peak and total `[M]` of exponents to base 2; tokens and seen `[N]`; position
    `[M]`, not looked at unless CAUSAL.
    """
    page = tl.load(table + tokens // PAGE_SIZE, mask=seen, other=0).to(tl.int64)  # a pool can exceed 2^31
    offset = tokens % PAGE_SIZE
    key_rows = keys + page * key_page + offset * key_token
    k = _rows(key_rows, dims, key_dim, seen, KEY_DIM)  # [N, K]
    scores = tl.dot(q, tl.trans(k), input_precision=PRECISION)
    if BLOCK_REST > 0:
        k_rest = _rows(key_rows, rest_dims, key_dim, seen, KEY_DIM)
        scores = tl.dot(q_rest, tl.trans(k_rest), scores, input_precision=PRECISION)
    scores = scores * scale
    if SOFTCAP:  # tanh(x) = 1 - 2 / (exp(2x) + 1)
        scores = softcap * (1.0 - 2.0 / (tl.exp2(scores * (2.885390081777927 / softcap)) + 1.0))
    read = seen[None, :]
    if CAUSAL:
        read = read & (tokens[None, :] <= position[:, None])
    scores = tl.where(read, scores * 1.4426950408889634, float("-inf"))

    new_peak = tl.maximum(peak, tl.max(scores, 1))
    base = tl.where(new_peak > float("-inf"), new_peak, 0.0)  # -inf - -inf is NaN
    keep = tl.exp2(peak - base)
    weights = tl.exp2(scores - base[:, None])
    if SHARED:
        v = k
    else:
        value_rows = values + page * value_page + offset * value_token
        v = _rows(value_rows, value_dims, value_dim, seen, VALUE_DIM)  # [N, V]
    acc = tl.dot(weights.to(v.dtype), v, acc * keep[:, None], input_precision=PRECISION)
    return acc, new_peak, total * keep + tl.sum(weights, 1)


@triton.jit  # type: ignore[untyped-decorator]
def _rows(rows, dims, stride, seen, DIM: tl.constexpr):  # type: ignore[no-untyped-def]
    """One row of the cache per token; unused cells may hold NaN, so what is not seen is never read."""
    return tl.load(
        rows[:, None] + dims[None, :] * stride, mask=seen[:, None] & (dims < DIM)[None, :], other=0.0
    )
