"""paged_attention on a CPU: PyTorch's own flash kernel over the cache where it lies, parts merged by lse.

Chosen by measurement over explicit matmul + softmax tiles (0.6-0.8 of its rate; `cpu_tiled.py` keeps them for
softcap and for values of another head size) and over one masked call (0.75-0.9): prefix without mask + causal
diagonal.
"""

from functools import lru_cache

import torch
from torch import Tensor

from headway.kernels.paged_attention.cpu_cache import CpuCache
from headway.kernels.paged_attention.cpu_decodes import InPlace, Part, schedule_decodes
from headway.kernels.paged_attention.cpu_schedule import Piece, Sequence
from headway.kernels.paged_attention.cpu_tiled import attend_tiled
from headway.kernels.paged_attention.merging import add_part, add_sinks
from headway.kernels.paged_attention.plan import AttentionPlan

WINDOW_TILE = 64  # queries that share one band of keys: small tiles waste less of a short window


def paged_attention(
    query: Tensor, key_cache: Tensor, value_cache: Tensor, plan: AttentionPlan,
    scale: float, window: int | None, softcap: float | None, sinks: Tensor | None, out: Tensor | None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    kv = CpuCache(key_cache, value_cache)
    dtype, query = query.dtype, kv.widen(query)
    decodes, chunks = plan.memo("cpu", lambda: _kinds(plan))
    tiled = softcap is not None or not kv.same_dim
    if not chunks and not tiled:  # what a decode step is
        decoded, lse = _decode(query, kv, _schedule(plan, decodes, window, kv), scale)
        out = decoded.to(dtype) if out is None else out.copy_(decoded)
        if sinks is not None:
            add_sinks(out, lse, sinks)
        return out, lse

    if out is None:
        out = torch.empty((*query.shape[:2], kv.value_dim), dtype=dtype)
    lse = torch.empty(query.shape[:2], dtype=torch.float32)
    if decodes and not tiled:
        tokens = torch.tensor([plan.host_starts[b] for b in decodes])
        decoded, lse[tokens] = _decode(query[tokens], kv, _schedule(plan, decodes, window, kv), scale)
        out[tokens] = decoded.to(out.dtype)
    for b in (*decodes, *chunks) if tiled else chunks:
        one = Sequence.of(plan, b, kv.cost.flat)
        if tiled:
            tiled_out, lse[one.rows] = attend_tiled(query[one.rows], one, kv.load, scale, window, softcap)
            out[one.rows] = tiled_out[..., : kv.value_dim]
        else:
            _Chunk(kv, one, scale).attend(query[one.rows], window, out[one.rows], lse[one.rows])
    if sinks is not None:
        add_sinks(out, lse, sinks)
    return out, lse


def _kinds(plan: AttentionPlan) -> tuple[list[int], list[int]]:
    """The sequences that decode, and those that bring longer chunks."""
    kinds: tuple[list[int], list[int]] = ([], [])
    for b, q_len in enumerate(plan.host_q_lens):
        kinds[q_len > 1].append(b)
    return kinds


def _schedule(plan: AttentionPlan, decodes: list[int], window: int | None, kv: CpuCache) -> list[Part]:
    key = ("cpu decodes", window, kv.cost)
    return plan.memo(key, lambda: schedule_decodes(plan, decodes, window, kv.cost))


def _flash(
    query: Tensor, key: Tensor, value: Tensor, scale: float, causal: bool = False, mask: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """query `[B, H, N, D]`, key and value `[B, Hkv, M, D]`; lse in natural log."""
    return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default(  # type: ignore[no-any-return]
        query, key, value, 0.0, causal, attn_mask=mask, scale=scale
    )


def _decode(query: Tensor, kv: CpuCache, parts: list[Part], scale: float) -> tuple[Tensor, Tensor]:
    """One query per row, the group's heads packed as rows of one KV head so that K and V are read once."""
    rows, heads, dim = query.shape
    packed = query.reshape(rows, kv.num_kv_heads, -1, dim)
    out = lse = None
    for part in parts:
        whole = part.batch == rows and isinstance(part.rows, slice) and not _splits(part)
        part_query = packed if whole else packed[part.rows]
        part_out, part_lse = _attend_part(part_query, kv, part, scale)
        part_out, part_lse = part_out.reshape(-1, heads, part_out.shape[3]), part_lse.reshape(-1, heads)
        if out is None or lse is None:
            if whole:
                out, lse = part_out, part_lse
                continue
            out = part_out.new_zeros((rows, *part_out.shape[1:]))
            lse = part_lse.new_full((rows, heads), float("-inf"))
        out = out.to(lse.dtype)  # in bf16 each merge would round, and of many parts the last would be lost
        if part.fresh and not _splits(part):
            out[part.rows], lse[part.rows] = part_out.to(out.dtype), part_lse
            continue
        for i in range(part.batch if _splits(part) else 1):
            new = (part_out[i : i + 1], part_lse[i : i + 1]) if _splits(part) else (part_out, part_lse)
            out[part.rows], lse[part.rows] = add_part(out[part.rows], lse[part.rows], *new)
    assert out is not None  # a row always sees itself
    assert lse is not None
    return out[..., : kv.value_dim], lse.float()


def _splits(part: Part) -> bool:
    return isinstance(part, InPlace) and part.split


def _attend_part(query: Tensor, kv: CpuCache, part: Part, scale: float) -> tuple[Tensor, Tensor]:
    """query `[n, Hkv, G, D]`, n = part.batch, or 1 for the splits of one row."""
    if isinstance(part, InPlace):
        key, value = kv.load_runs(part.start, part.step, part.length, part.batch)
        return _flash(query.expand(part.batch, -1, -1, -1) if part.split else query, key, value, scale)
    key, value = (
        x.view(part.batch, part.length, *x.shape[1:]).transpose(1, 2) for x in kv.load(part.slots)
    )  # [n, Hkv, length, D]
    mask = part.padding
    if mask is not None:
        mask = mask.to(key.dtype).expand(-1, 1, query.shape[2], -1)
    return _flash(query, key, value, scale, mask=mask)


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
