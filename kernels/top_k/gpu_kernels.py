"""The Triton kernels of top_k: see gpu.py for how they work together."""

import triton
import triton.language as tl

BINS = tl.constexpr(256)


@triton.jit  # type: ignore[untyped-decorator]
def short_kernel(  # type: ignore[no-untyped-def]
    scores, limits, out, length, k, scores_row, limits_row, BLOCK: tl.constexpr, HAS_LIMITS: tl.constexpr
):
    row = tl.program_id(0).to(tl.int64)
    wanted = load_limit(limits, row * limits_row, k, HAS_LIMITS)
    cells = tl.arange(0, BLOCK)
    keys = load_keys(scores + row * scores_row, cells, length)
    threshold = tl.zeros([], tl.uint32)  # the largest that `wanted` keys reach
    bit = tl.full([], 0x80000000, tl.uint32)
    for _ in range(32):
        reached = tl.sum((keys >= (threshold | bit)).to(tl.int32), 0) >= wanted
        threshold = tl.where(reached, threshold | bit, threshold)
        bit = bit >> 1
    above = tl.sum((keys > threshold).to(tl.int32), 0)
    ties = tl.where(threshold > 0, wanted - above, 0)  # key 0 is never chosen
    write_chosen(out + row * k, cells, keys, threshold, 0, 0, ties)
    pad(out + row * k, above + ties, k)


@triton.jit(do_not_specialize=["shift"])  # type: ignore[untyped-decorator]
def digit_kernel(  # type: ignore[no-untyped-def]
    scores, limits, last_histograms, last_states, last_above, histograms, states, above,
    length, k, scores_row, limits_row, split_length, shift,
    FIRST: tl.constexpr, HAS_LIMITS: tl.constexpr, SPLITS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Count the next eight bits of the keys that share the threshold's bits so far."""
    row = tl.program_id(0).to(tl.int64)
    split = tl.program_id(1)
    if FIRST:
        prefix = tl.zeros([], tl.uint32)
        wanted = load_limit(limits, row * limits_row, k, HAS_LIMITS)
        split_above = 0
    else:
        prefix, wanted, all_above, _ = settle_digit(last_histograms, last_states, last_above, row, SPLITS)
        split_above = tl.sum(tl.where(tl.arange(0, SPLITS) == split, all_above, 0), 0)
    tl.store(above + row * SPLITS + split, split_above)
    if split == 0:
        tl.store(states + row * 2, prefix.to(tl.int32, bitcast=True))
        tl.store(states + row * 2 + 1, wanted)
    counts = tl.zeros([BINS], tl.int32)
    stop = tl.minimum(length, (split + 1) * split_length)
    for start in range(split * split_length, stop, BLOCK):
        keys = load_keys(scores + row * scores_row, start + tl.arange(0, BLOCK), stop)
        shares = keys > 0 if FIRST else keys >> (shift + 8).to(tl.uint32) == prefix
        digits = ((keys >> shift.to(tl.uint32)) & 255).to(tl.int32)
        counts += tl.histogram(digits, BINS, mask=shares)
    tl.store(histograms + (row * SPLITS + split) * BINS + tl.arange(0, BINS), counts)


@triton.jit  # type: ignore[untyped-decorator]
def write_kernel(  # type: ignore[no-untyped-def]
    scores, histograms, states, above, out, length, k, scores_row, split_length,
    SPLITS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    split = tl.program_id(1)
    splits = tl.arange(0, SPLITS)
    threshold, ties, all_above, equal = settle_digit(histograms, states, above, row, SPLITS)
    ties = tl.where(threshold > 0, ties, 0)  # key 0 is never chosen
    above_before = tl.sum(tl.where(splits < split, all_above, 0), 0)
    equal_before = tl.sum(tl.where(splits < split, equal, 0), 0)
    stop = tl.minimum(length, (split + 1) * split_length)
    for start in range(split * split_length, stop, BLOCK):
        cells = start + tl.arange(0, BLOCK)
        keys = load_keys(scores + row * scores_row, cells, stop)
        above_before, equal_before = write_chosen(
            out + row * k, cells, keys, threshold, above_before, equal_before, ties
        )
    if split == 0:
        pad(out + row * k, tl.sum(all_above, 0) + ties, k)


@triton.jit  # type: ignore[untyped-decorator]
def load_limit(limits, cell, k, HAS_LIMITS: tl.constexpr):  # type: ignore[no-untyped-def]
    limit = k
    if HAS_LIMITS:
        limit = tl.minimum(tl.maximum(tl.load(limits + cell), 0), k).to(tl.int32)
    return limit


@triton.jit
def load_keys(row_scores, cells, stop):  # type: ignore[no-untyped-def]
    """uint32 in the order of the floats, both zeros the same; 0 for -inf, NaN and cells from `stop` on."""
    values = tl.load(row_scores + cells, mask=cells < stop, other=float("-inf"))
    bits = values.to(tl.uint32, bitcast=True)
    bits = tl.where(bits == 0x80000000, 0, bits)  # as floats, a flush to zero would take subnormals along
    keys = tl.where(bits >> 31 == 0, bits | 0x80000000, bits ^ 0xFFFFFFFF)
    return tl.where(values > float("-inf"), keys, 0)


@triton.jit  # type: ignore[untyped-decorator]
def settle_digit(histograms, states, above, row, SPLITS: tl.constexpr):  # type: ignore[no-untyped-def]
    """The threshold's bits with one digit more, how many keys with just these bits are wanted, and per split
    how many keys are above them and how many have them."""
    bins = tl.arange(0, BINS)
    cells = row * SPLITS + tl.arange(0, SPLITS)
    counts = tl.load(histograms + cells[:, None] * BINS + bins[None, :])
    prefix = tl.load(states + row * 2).to(tl.uint32, bitcast=True)
    wanted = tl.load(states + row * 2 + 1)
    totals = tl.sum(counts, 0)
    reached = tl.sum(totals, 0) - tl.cumsum(totals, 0) + totals >= wanted
    digit = tl.maximum(tl.sum(reached.to(tl.int32), 0) - 1, 0)
    higher = tl.sum(tl.where(bins[None, :] > digit, counts, 0), 1)
    equal = tl.sum(tl.where(bins[None, :] == digit, counts, 0), 1)
    wanted -= tl.sum(higher, 0)
    return (prefix << 8) | digit.to(tl.uint32), wanted, tl.load(above + cells) + higher, equal


@triton.jit
def write_chosen(  # type: ignore[no-untyped-def]
    out_row, cells, keys, threshold, above_before, equal_before, ties
):
    """Write the cells above the threshold and the first `ties` of those at it; the counts move on."""
    above = (keys > threshold).to(tl.int32)
    equal = (keys == threshold).to(tl.int32)
    above_rank = above_before + tl.cumsum(above, 0) - above
    equal_rank = equal_before + tl.cumsum(equal, 0) - equal
    chosen = (above > 0) | ((equal > 0) & (equal_rank < ties))
    tl.store(out_row + above_rank + tl.minimum(equal_rank, ties), cells, mask=chosen)
    return above_before + tl.sum(above, 0), equal_before + tl.sum(equal, 0)


@triton.jit  # type: ignore[untyped-decorator]
def pad(out_row, filled, k, BLOCK: tl.constexpr = 1024):  # type: ignore[no-untyped-def]
    for start in range(0, k, BLOCK):
        slots = start + tl.arange(0, BLOCK)
        tl.store(out_row + slots, -1, mask=(slots >= filled) & (slots < k))
