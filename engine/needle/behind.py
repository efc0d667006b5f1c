"""Attention of questions to a haystack that all see, unmasked, and to tokens of their own."""

from typing import Any

import torch
from torch import Tensor

_forward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


class _Behind(torch.autograd.Function):
    """Two parts merged by log-sum-exp; each one's gradient needs no more than the merged output and lse."""

    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k_seen: Tensor, v_seen: Tensor, k: Tensor, v: Tensor, mask: Tensor
    ) -> Tensor:
        seen, seen_lse = _forward(q, k_seen, v_seen)
        own, own_lse = _forward(q, k, v, attn_mask=mask)
        lse = torch.logaddexp(seen_lse, own_lse)
        out: Tensor = (seen_lse - lse).exp()[..., None] * seen + (own_lse - lse).exp()[..., None] * own
        ctx.save_for_backward(q, k_seen, v_seen, k, v, mask, out, lse)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        q, k_seen, v_seen, k, v, mask, out, lse = ctx.saved_tensors
        grad = grad.contiguous()
        dq_seen, dk_seen, dv_seen = _backward(grad, q, k_seen, v_seen, out, lse, 0.0, False)
        dq, dk, dv = _backward(grad, q, k, v, out, lse, 0.0, False, attn_mask=mask)
        return dq + dq_seen, dk_seen, dv_seen, dk, dv, None


def attend_behind(q: Tensor, k_seen: Tensor, v_seen: Tensor, k: Tensor, v: Tensor, own: Tensor) -> Tensor:
    """q [1, heads, T, d]; seen keys and values [1, KV heads, n, d], own ones [1, KV heads, T, d] -> like q.

    Every query sees all of the seen keys, and of the own ones those of `own` [T, T].
    """
    _, heads, t, d = q.shape
    kv_heads = k.shape[1]
    mask = torch.zeros(t, t).masked_fill_(~own, -torch.inf).repeat(heads // kv_heads, 1)[None, None]
    packed = q.reshape(1, kv_heads, -1, d)  # the rows of a group's heads, one behind the other
    out: Tensor = _Behind.apply(packed, k_seen, v_seen, k, v, mask)  # type: ignore[no-untyped-call]
    return out.reshape(1, heads, t, d)
