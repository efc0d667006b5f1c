"""selected_attention on a CPU: what is chosen is copied side by side, then one flash call for all heads.

At the usual budgets fixed costs dominate (2-5 us for each PyTorch call, 25-80 us for the attention of 512 to
2048 tokens), so positions are worked out in numpy, and a list that all heads share copies whole units.
"""

from math import gcd

import numpy as np
import torch
from torch import Tensor

from headway.kernels.paged_attention.cpu_cache import multiplies_fast
from headway.kernels.paged_attention.merging import add_sinks
from headway.kernels.paged_attention.plan import AttentionPlan, Numbers
from headway.kernels.selected_attention.cpu_lists import UnitPlaces, chosen, unit_cells, unit_places
from headway.kernels.selected_attention.cpu_scratch import Scratch

COPY_BYTES = 4 * 1024 * 1024  # K and V of one call; larger copies fall out of the cache
SCRATCH_BYTES = 512 * 1024  # copies from here up to COPY_BYTES go to memory that is already mapped

_scratch = Scratch()


def selected_attention(
    query: Tensor, key_cache: Tensor, value_cache: Tensor, plan: AttentionPlan, indices: Tensor, unit: int,
    scale: float, softcap: float | None, sinks: Tensor | None, active: Tensor | None, out: Tensor | None,
    lse: Tensor | None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    where = unit_places(plan, unit)
    rows = None
    if active is not None and not active.all():
        rows = active.nonzero().squeeze(1)
        query, indices, where = query[rows], indices[rows], where.of(rows.tolist())
        if not len(rows) and out is not None and lse is not None:
            return out, lse
    new_out, new_lse = _attend(query, key_cache, value_cache, indices, unit, where, scale, softcap)
    if sinks is not None:
        add_sinks(new_out, new_lse, sinks)
    if new_out.dtype != query.dtype:
        new_out = new_out.to(query.dtype)
    return _into(out, new_out, rows), _into(lse, new_lse, rows)


def _into(given: Tensor | None, new: Tensor, rows: Tensor | None) -> Tensor:
    if given is None:
        return new
    if rows is None:
        return given.copy_(new)
    return given.index_copy_(0, rows, new)


def _attend(
    query: Tensor, key_cache: Tensor, value_cache: Tensor, indices: Tensor, unit: int, where: UnitPlaces,
    scale: float, softcap: float | None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    batch, num_lists, width = indices.shape
    page_size, num_kv_heads, key_dim = key_cache.shape[1:]
    token_bytes = max(num_lists, num_kv_heads) * (key_dim + value_cache.shape[3]) * key_cache.itemsize
    step = max(1, COPY_BYTES // (width * unit * token_bytes))
    if step >= batch:
        copies = _Copies(*chosen(indices, unit, where), unit, page_size, num_kv_heads)
        return copies.attend(query, key_cache, value_cache, scale, softcap)
    parts = []
    for first in range(0, batch, step):
        rows = slice(first, first + step)
        there = where.of(range(first, min(first + step, batch)))
        parts.append(_attend(query[rows], key_cache, value_cache, indices[rows], unit, there, scale, softcap))
    outs, lses = zip(*parts, strict=True)
    return torch.cat(outs), torch.cat(lses)


class _Copies:
    """The chosen tokens of b sequences, side by side and of one length."""

    def __init__(
        self, places: Numbers, lengths: list[int], unit: int, page_size: int, num_kv_heads: int
    ) -> None:
        batch, num_lists, width = places.shape
        self.num_lists, self.lengths, self.length = num_lists, lengths, max(lengths)
        self.hidden = None  # [b, Hs, length]
        if min(lengths) < self.length or not self.length:
            self.length = width * unit
            self.hidden = np.arange(self.length) >= np.array(lengths).reshape(batch, num_lists, 1)
        if num_lists == 1:
            self.span = unit * num_kv_heads
            self.whole_pages = unit == page_size
            size, strides = (batch, num_kv_heads), (width * self.span, 1, num_kv_heads)
            rows = places
        else:
            self.span = 1
            self.whole_pages = False
            size, strides = (batch, num_lists), (num_lists * self.length, self.length, 1)
            cells = (places * (unit * num_kv_heads))[..., None] + unit_cells(num_lists, num_kv_heads, unit)
            rows = cells.reshape(batch, num_lists, -1)[..., : self.length]
        if batch == 1:  # heads first, so that the lse comes out in one piece
            size, strides = size[::-1], (strides[1], strides[0], strides[2])
        self.size, self.strides = size, strides  # of sequences and heads; and of tokens
        self.rows = torch.from_numpy(rows.reshape(-1))
        self.spaced: tuple[list[int], Tensor] = [], self.rows

    def attend(
        self, query: Tensor, key_cache: Tensor, value_cache: Tensor, scale: float, softcap: float | None
    ) -> tuple[Tensor, Tensor]:
        """query `[b, Hq, Dk]`; out `[b, Hq, Dv]` in a dtype that this CPU multiplies fast, lse fp32."""
        batch, num_heads, dim = query.shape
        value_dim = value_cache.shape[3]
        key = value = self.copy(key_cache, "key")
        shared = value_cache.data_ptr() == key_cache.data_ptr() and value_cache.stride() == key_cache.stride()
        if not shared:
            value = self.copy(value_cache, "value")
        packed = query.reshape(*self.size, -1, dim)
        if packed.dtype != key.dtype:
            packed = packed.to(key.dtype)
        mask = None
        if self.hidden is not None:
            bias = np.where(self.hidden, np.float32("-inf"), np.float32(0))
            mask = torch.from_numpy(bias).to(key.dtype).unsqueeze(2).expand(-1, -1, packed.shape[2], -1)
            mask = mask.transpose(0, 1) if batch == 1 else mask
        if softcap is None and value.shape[3] == dim:
            if packed.stride(3) != 1:
                packed = packed.contiguous()
            out, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default(
                packed, key, value, 0.0, False, attn_mask=mask, scale=scale
            )
        else:
            out, lse = _softmax_attention(packed, key, value, scale, softcap, mask)
        if shared:
            out = out[..., :value_dim]
        out, lse = out.reshape(batch, num_heads, value_dim), lse.reshape(batch, num_heads)
        if 0 in self.lengths:
            empty = torch.tensor(self.lengths).view(batch, -1) == 0
            empty = empty.repeat_interleave(num_heads // self.num_lists, 1)
            out, lse = out.masked_fill(empty.unsqueeze(-1), 0.0), lse.masked_fill(empty, float("-inf"))
        return out, lse

    def copy(self, cache: Tensor, name: str) -> Tensor:
        """Keys or values `[*size, length, D]`, zero where hidden: unused cells may hold NaN."""
        dim = cache.shape[3]
        if cache.is_contiguous():
            rows, chosen_rows = cache if self.whole_pages else cache.view(-1, self.span * dim), self.rows
        else:
            rows, chosen_rows = self._evenly_spaced(cache)
        room = None
        if SCRATCH_BYTES <= chosen_rows.numel() * rows[0].numel() * cache.itemsize <= COPY_BYTES:
            room = _scratch.take(name, (len(chosen_rows), *rows.shape[1:]), cache.dtype)
        copied = torch.index_select(rows, 0, chosen_rows, out=room)
        if not multiplies_fast(cache.dtype):
            copied = copied.float()
        if self.hidden is not None:
            hidden = torch.from_numpy(self.hidden.ravel().nonzero()[0])
            copied.view(self.hidden.size, -1).index_fill_(0, hidden, 0.0)
        return copied.as_strided(
            (*self.size, self.length, dim), (*(stride * dim for stride in self.strides), 1)
        )

    def _evenly_spaced(self, cache: Tensor) -> tuple[Tensor, Tensor]:
        """A cache of any strides as rows `[N, D]`, which may overlap, and which of them are chosen."""
        *strides, number = cache.stride()
        step = gcd(*strides) or 1
        last = sum((size - 1) * stride for size, stride in zip(cache.shape, strides, strict=False))
        rows = cache.as_strided((last // step + 1, cache.shape[3]), (step, number), cache.storage_offset())
        if strides != self.spaced[0]:  # values mostly lie like their keys
            cells = self.rows.numpy()[:, None] * self.span + np.arange(self.span)
            page, token, head = np.unravel_index(cells.ravel(), cache.shape[:3])
            found = (page * strides[0] + token * strides[1] + head * strides[2]) // step
            self.spaced = strides, torch.from_numpy(found)
        return rows, self.spaced[1]


def _softmax_attention(
    query: Tensor, key: Tensor, value: Tensor, scale: float, softcap: float | None, mask: Tensor | None
) -> tuple[Tensor, Tensor]:
    """query `[b, H, R, Dk]`, key `[b, H, N, Dk]`, value `[b, H, N, Dv]`."""
    # widened before the product: torch's CPU rounds that of two bf16 tensors to bf16
    scores = torch.matmul(query.float(), key.float().transpose(2, 3)).mul_(scale)
    if softcap is not None:
        scores.div_(softcap).tanh_().mul_(softcap)
    if mask is not None:
        scores.add_(mask)
    lse = torch.logsumexp(scores, -1)
    weights = scores.sub_(lse.unsqueeze(-1)).exp_()
    return torch.matmul(weights.to(value.dtype), value), lse
