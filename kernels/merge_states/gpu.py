"""merge_states in Triton: one program per row and head."""

import torch
import triton
import triton.language as tl
from torch import Tensor


def merge_states(outs: Tensor, lses: Tensor) -> tuple[Tensor, Tensor]:
    out = torch.empty(outs.shape[1:], dtype=outs.dtype, device=outs.device)
    lse = torch.empty(lses.shape[1:], dtype=torch.float32, device=outs.device)
    merge_into(outs, lses, out, lse)
    return out, lse


def merge_into(outs: Tensor, lses: Tensor, out: Tensor, lse: Tensor, rows: Tensor | None = None) -> None:
    """Write the merged parts to row `rows[i]` of `out` and `lse` (to row i when `rows` is None)."""
    parts, tokens, heads, dim = outs.shape
    if tokens == 0 or heads == 0:
        return
    merge_kernel[tokens, heads](
        outs, lses, out, lse, rows,
        parts, *outs.stride(), *lses.stride(), *out.stride(), *lse.stride(),
        DIM=dim, BLOCK_D=triton.next_power_of_2(dim), HAS_ROWS=rows is not None, num_warps=2,
    )  # fmt: skip


@triton.jit  # type: ignore[untyped-decorator]
def merge_kernel(  # type: ignore[no-untyped-def]
    outs, lses, out, lse, rows,
    num_parts,
    outs_part, outs_token, outs_head, outs_dim,
    lses_part, lses_token, lses_head,
    out_token, out_head, out_dim,
    lse_token, lse_head,
    DIM: tl.constexpr, BLOCK_D: tl.constexpr, HAS_ROWS: tl.constexpr,
):  # fmt: skip
    token = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1)
    dims = tl.arange(0, BLOCK_D)
    peak = float("-inf")
    total = 0.0
    acc = tl.zeros([BLOCK_D], tl.float32)
    part_out = outs + token * outs_token + head * outs_head + dims * outs_dim
    part_lses = lses + token * lses_token + head * lses_head
    for _ in range(num_parts):
        part_lse = tl.load(part_lses)
        value = tl.load(part_out, mask=dims < DIM, other=0.0).to(tl.float32)
        value = tl.where(part_lse > float("-inf"), value, 0.0)  # 0 * NaN is NaN
        part_out += outs_part
        part_lses += lses_part
        new_peak = tl.maximum(peak, part_lse)
        base = tl.where(new_peak > float("-inf"), new_peak, 0.0)  # -inf - -inf is NaN
        keep = tl.exp(peak - base)
        weight = tl.exp(part_lse - base)
        acc = acc * keep + value * weight
        total = total * keep + weight
        peak = new_peak
    some = total > 0.0
    row = token
    if HAS_ROWS:
        row = tl.load(rows + token).to(tl.int64)
    tl.store(
        out + row * out_token + head * out_head + dims * out_dim,
        (acc / tl.where(some, total, 1.0)).to(out.dtype.element_ty),
        mask=dims < DIM,
    )
    tl.store(
        lse + row * lse_token + head * lse_head,
        tl.where(some, peak + tl.log(tl.where(some, total, 1.0)), float("-inf")),
    )
