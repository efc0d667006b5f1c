"""paged_attention on a CPU: PyTorch's own flash kernel over the cache where it lies, parts merged by lse.

Decodes have a compiled kernel of their own. For chunks, PyTorch's was chosen by measurement over explicit
matmul + softmax tiles (0.6-0.8 of its rate; `cpu_tiled.py` keeps them for softcap and for values of another
head size) and over one masked call (0.75-0.9): prefix without mask + causal diagonal.
"""

from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from headway.kernels.paged_attention.cpu_cache import CpuCache
from headway.kernels.paged_attention.cpu_decodes import attend_decodes
from headway.kernels.paged_attention.cpu_schedule import Piece, Sequence
from headway.kernels.paged_attention.cpu_tiled import attend_tiled
from headway.kernels.paged_attention.merging import add_part, add_sinks
from headway.kernels.paged_attention.plan import AttentionPlan, Numbers

WINDOW_TILE = 64  # queries that share one band of keys: small tiles waste less of a short window


def paged_attention(
    query: Tensor, key_cache: Tensor, value_cache: Tensor, plan: AttentionPlan,
    scale: float, window: int | None, softcap: float | None, sinks: Tensor | None, out: Tensor | None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    decodes, chunks = kinds(plan)
    if not chunks:  # what a decode step is
        decoded, lse = attend_decodes(
            query, key_cache, value_cache, plan, decodes, scale, window, softcap, sinks
        )  # fmt: skip
        return (decoded.to(query.dtype) if out is None else out.copy_(decoded)), lse

    kv = CpuCache(key_cache, value_cache)
    tiled = softcap is not None or not kv.same_dim
    dtype, query = query.dtype, kv.widen(query)
    if out is None:
        out = torch.empty((*query.shape[:2], kv.value_dim), dtype=dtype)
    lse = torch.empty(query.shape[:2], dtype=torch.float32)
    for b in chunks:
        one = Sequence.of(plan, b, kv.cost.flat)
        if tiled:
            tiled_out, lse[one.rows] = attend_tiled(query[one.rows], one, kv.load, scale, window, softcap)
            out[one.rows] = tiled_out[..., : kv.value_dim]
        else:
            _Chunk(kv, one, scale).attend(query[one.rows], window, out[one.rows], lse[one.rows])
    if sinks is not None:
        add_sinks(out, lse, sinks)
    if len(decodes):
        tokens = torch.tensor([plan.host_starts[b] for b in decodes])
        decoded, lse[tokens] = attend_decodes(
            query[tokens], key_cache, value_cache, plan, decodes, scale, window, softcap, sinks
        )  # fmt: skip
        out[tokens] = decoded.to(out.dtype)
    return out, lse


def kinds(plan: AttentionPlan) -> tuple[Numbers, list[int]]:
    """The sequences that decode, and those that bring longer chunks."""
    return plan.memo("cpu kinds", lambda: _kinds(np.array(plan.host_q_lens)))


def _kinds(lengths: Numbers) -> tuple[Numbers, list[int]]:
    return np.flatnonzero(lengths == 1), np.flatnonzero(lengths > 1).tolist()


def _flash(
    query: Tensor, key: Tensor, value: Tensor, scale: float, causal: bool = False, mask: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """query `[B, H, N, D]`, key and value `[B, Hkv, M, D]`; lse in natural log."""
    return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default(  # type: ignore[no-any-return]
        query, key, value, 0.0, causal, attn_mask=mask, scale=scale
    )


class _Chunk:
    """Several queries of one sequence."""

    def __init__(self, kv: CpuCache, sequence: Sequence, scale: float) -> None:
        self.kv, self.sequence, self.scale = kv, sequence, scale

    def attend(self, query: Tensor, window: int | None, out: Tensor, lse: Tensor) -> None:
        position, q_len = self.sequence.position, self.sequence.q_len
        reach = self.sequence.kv_len if window is None else window
        early = min(q_len, max(0, reach - position))  # queries whose window still begins at the first key
        if early:
            self._causal(query[:early], out[:early], lse[:early])
        if window is not None and early < q_len:
            self._banded(query[early:], window, out[early:], lse[early:])

    def _causal(self, query: Tensor, out: Tensor, lse: Tensor) -> None:
        """All keys before the chunk unmasked, the chunk itself causal."""
        start, tokens = self.sequence.position, query.shape[0]
        key, value = self._heads_first(self.sequence.piece(start, start + tokens))
        diagonal, diagonal_lse = _flash(query.transpose(0, 1)[None], key, value, self.scale, causal=True)
        merged, merged_lse = diagonal[0].transpose(0, 1), diagonal_lse[0].T  # [n, Hq, D], [n, Hq]
        grouped = query.reshape(tokens, self.kv.num_kv_heads, -1, query.shape[2]).transpose(0, 1)
        packed = grouped.reshape(1, self.kv.num_kv_heads, -1, query.shape[2])  # [1, Hkv, n * G, D]
        for piece in self.sequence.pieces(0, start, self.kv.cost):
            key, value = self._heads_first(piece)
            part, part_lse = _flash(packed, key, value, self.scale)
            part = part.view(grouped.shape).transpose(0, 1).flatten(1, 2)
            part_lse = part_lse.reshape(grouped.shape[:3]).transpose(0, 1).flatten(1, 2)
            merged, merged_lse = add_part(merged, merged_lse, part, part_lse)
        out.copy_(merged[..., : self.kv.value_dim])
        lse.copy_(merged_lse)

    def _banded(self, query: Tensor, window: int, out: Tensor, lse: Tensor) -> None:
        """Each tile of queries against the keys of its own band, one batched call for all whole tiles."""
        tokens = query.shape[0]
        first = self.sequence.kv_len - tokens - window + 1
        key, value = self.kv.load(self.sequence.piece(first, self.sequence.kv_len))
        whole = tokens - tokens % WINDOW_TILE
        for start, stop in ((0, whole), (whole, tokens)):
            if start == stop:
                continue
            size = min(WINDOW_TILE, stop - start)
            tiles = (
                query[start:stop].reshape(-1, size, *query.shape[1:]).transpose(1, 2)
            )  # [tiles, Hq, size, D]
            length = size + window - 1
            tile_key, tile_value = (
                x[start : stop + window - 1].unfold(0, length, size).permute(0, 1, 3, 2) for x in (key, value)
            )
            mask = _band(size, window, query.dtype)
            part, part_lse = _flash(tiles, tile_key, tile_value, self.scale, mask=mask)
            out[start:stop] = part.transpose(1, 2).flatten(0, 1)[..., : self.kv.value_dim]
            lse[start:stop] = part_lse.transpose(1, 2).flatten(0, 1)

    def _heads_first(self, piece: Piece) -> list[Tensor]:
        return [x.transpose(0, 1)[None] for x in self.kv.load(piece)]


@lru_cache(maxsize=16)
def _band(tokens: int, window: int, dtype: torch.dtype) -> Tensor:
    """Row i sees columns [i, i + window)."""
    mask = torch.full((tokens, tokens + window - 1), float("-inf"), dtype=dtype)
    return mask.masked_fill_(torch.ones_like(mask, dtype=torch.bool).triu().tril(window - 1), 0.0)
