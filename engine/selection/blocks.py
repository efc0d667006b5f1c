"""Which blocks of earlier keys each tile of queries reads, from their scores: the one place that decides.

Causality comes before ranking: a block counts as a candidate only if some of its keys lie before all that
its tile reads anyway. Block b holds the tokens [b * block, (b + 1) * block) of the sequence.
"""

import torch
from torch import Tensor
from torch.nn.functional import pad

from headway.engine.selection.chunk_view import ChunkView
from headway.engine.selection.fewest import fewest, lacking
from headway.engine.selection.forced import local_from
from headway.engine.selection.prefill_selection import PrefillSelection
from headway.engine.selection.prefill_settings import PrefillSettings
from headway.kernels.top_k import top_k


def candidates(
    chunk: ChunkView, settings: PrefillSettings, block: int, blocks: int, own: Tensor | None = None
) -> Tensor:
    """bool [H, tiles, blocks]: blocks with keys that neither the sinks nor the local part of a tile hold.

    Args:
        own: int32 [H, tiles], the method's own `local_from`.
    """
    local = local_from(chunk, PrefillSelection(local_from=own), settings)
    begin = torch.arange(0, blocks * block, block, device=local.device)
    return (begin < local.unsqueeze(-1)) & (begin + block > settings.sink_size)


def pooled_scores(
    query: Tensor, vectors: Tensor, tile: int, scale: float, softcap: float | None = None
) -> Tensor:
    """Each tile's mean query with vectors [n, Hkv, D] that stand for keys; fp32 [Hq, tiles, n].

    Args:
        query: [T, Hq, D].
    """
    tokens, heads, dim = query.shape
    tiles = -(-tokens // tile)
    rows = query.float()
    if tokens % tile:
        rows = pad(rows, (0, 0, 0, 0, 0, tiles * tile - tokens))
    count = torch.full((tiles, 1, 1), tile, device=query.device)
    count[-1] = tokens - (tiles - 1) * tile
    pooled = (rows.view(tiles, tile, heads, dim).sum(1) * (scale / count)).transpose(0, 1)  # [Hq, tiles, D]
    group = heads // vectors.shape[1]
    by_group = pooled.reshape(-1, group * tiles, dim) @ vectors.float().permute(1, 2, 0)
    if softcap is not None:
        by_group = by_group.div_(softcap).tanh_().mul_(softcap)
    return by_group.view(heads, tiles, -1)


def best_blocks(scores: Tensor, allowed: Tensor, count: int) -> Tensor:
    """The `count` best allowed blocks of each row, ascending, padded with -1 at the end; int32 [H, tiles, K].

    Args:
        scores: fp32 [H, tiles, blocks]; overwritten. Of equal scores the earlier block wins.
        allowed: bool, broadcasts to scores.
    """
    scores.masked_fill_(~allowed, -torch.inf)
    return _narrowed(top_k(scores, max(1, min(count, scores.shape[-1]))))


def covering_blocks(mass: Tensor, allowed: Tensor, share: float) -> Tensor:
    """The fewest allowed blocks of each row that hold, with all that is not allowed, `share` of its mass.

    What is not allowed is read anyway, or lies in the future and has no mass. A share above 1 takes all.

    Args:
        mass: fp32 [H, tiles, blocks], at least 0. Of equal masses the earlier block is taken first.
        allowed: bool, broadcasts to mass.

    Returns:
        int32 [H, tiles, K], ascending, padded with -1 at the end.
    """
    kept = fewest(mass.masked_fill(~allowed, -1.0), lacking(mass, allowed, share))
    last = torch.iinfo(torch.int32).max
    block = torch.arange(mass.shape[-1], dtype=torch.int32, device=mass.device)
    packed = torch.where(kept, block, last).sort(-1).values
    return _narrowed(packed.masked_fill_(packed == last, -1))


def spans_of(blocks: Tensor, block: int) -> Tensor:
    """Spans of `block` keys, int32 like the block numbers."""
    return torch.where(blocks >= 0, blocks * block, -1)


def _narrowed(blocks: Tensor) -> Tensor:
    """Without columns that are padding in every row, where looking costs no wait for a GPU."""
    if blocks.device.type != "cpu" or not blocks.numel():
        return blocks
    return blocks[..., : int((blocks >= 0).sum(-1).max())]
