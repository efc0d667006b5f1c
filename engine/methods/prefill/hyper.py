"""hyper: earlier keys by hashing and sampling (HyperAttention, arXiv 2310.05869).

Experimental, and not safe for retrieval: a needle that the hashes miss is read only if it is drawn.

A chunk reads the sinks, a window before it and itself exactly. For the keys in between, queries and keys are
sorted by the signs of a few random projections and cut into equally many blocks; each query block reads the
key block of its rank. Keys drawn at random stand for all others, with keys / samples times their weight. For
any projections, what is read has the exact sums of exponentials and of values as its expectation.

Other than published:
- A chunk is a leaf of the causal recursion, and all that precedes it one rectangle.
- Neighbours in the order of the hashes differ in one sign (a Gray code, decoded).
- A drawn key that stands in the query's block is not counted again, and nothing is padded with keys.
- The seed is a setting, and what is drawn depends on nothing else but layer, chunk and head. Each KV head
  draws and sorts once for the query heads of its group, which sort their queries apart.
"""

from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from headway.engine.methods.prefill.base import ChunkMethod
from headway.engine.selection.chunk_rows import selecting_rows
from headway.engine.selection.chunk_view import ChunkView
from headway.engine.selection.forced import attend_selection
from headway.engine.selection.hashed_attention import hashed_attention
from headway.engine.selection.prefill_selection import PrefillSelection
from headway.engine.selection.prefill_settings import ChunkSettings, gate
from headway.engine.selection.settings import Count, Positive, ServersOwn
from headway.kernels.merge_states import merge_states


class Settings(ChunkSettings):
    """More samples and larger blocks are nearer to dense attention."""

    method: Literal["hyper"] = "hyper"
    dense_below: Count = gate(16_384)
    min_length: Count = Field(4096, description="Up to so many earlier keys are read exactly.")
    block: Annotated[Positive, ServersOwn] = Field(256, description="Keys of a block, at least.")
    samples: Annotated[Positive, ServersOwn] = Field(256, description="Keys drawn for the rest.")
    projections: Annotated[int, ServersOwn] = Field(7, ge=1, le=30, description="Signs of a hash.")
    chunk: Annotated[Positive, ServersOwn] = Field(1024, description="Tokens that are sorted together.")
    seed: Annotated[Count, ServersOwn] = Field(0, description="Of projections and samples.")


class Method(ChunkMethod[Settings]):
    """An exact part, a hashed part and a sampled part, merged by their log-sum-exp."""

    def attend(self, query: Tensor, chunk: ChunkView) -> tuple[Tensor, Tensor]:
        """All rows exactly over what is near, then those that select over what is between."""
        settings = self.settings
        stop = max(0, chunk.start - settings.window_size)
        far = range(settings.sink_size, stop)
        rows = selecting_rows(chunk, settings)
        approximate = rows and len(far) > settings.min_length
        local = torch.full_like(chunk.tile_starts(settings.tile), stop if approximate else 0).unsqueeze(0)
        out, lse = attend_selection(query, chunk, PrefillSelection(local_from=local), settings)
        if not approximate:
            return out, lse
        here = slice(rows.start - chunk.start, rows.stop - chunk.start)
        parts, part_lses = self._between(query[here], chunk, far)
        out[here], lse[here] = merge_states(
            torch.cat((out[here].unsqueeze(0), parts)), torch.cat((lse[here].unsqueeze(0), part_lses))
        )
        return out, lse

    def _between(self, query: Tensor, chunk: ChunkView, far: range) -> tuple[Tensor, Tensor]:
        """Both parts of queries [R, Hq, Dk] over the keys at `far`: [2, R, Hq, Dv] and lse [2, R, Hq]."""
        settings, spec = self.settings, chunk.spec
        generator = torch.Generator().manual_seed(settings.seed + spec.layer_idx)
        directions = torch.randn(spec.key_dim, settings.projections, generator=generator)
        drawn = torch.randint(len(far), (spec.num_kv_heads, settings.samples), generator=generator)
        directions, drawn = directions.to(query.device), drawn.to(query.device)
        keys, values = (
            chunk.rows_of(cache, far.start, far.stop) for cache in (chunk.key_cache, chunk.value_cache)
        )
        groups = query.transpose(0, 1).reshape(spec.num_kv_heads, -1, *query.shape[::2])  # [Hkv, G, R, Dk]
        found = [
            hashed_attention(
                groups[head].float(), keys[:, head].float(), values[:, head].float(), directions,
                drawn[head], settings.block, spec.scale, spec.softcap,
            )
            for head in range(spec.num_kv_heads)
        ]  # fmt: skip
        for each in found:
            chunk.count(each.pairs)
        outs = torch.cat([each.out for each in found], 1).transpose(1, 2)
        lses = torch.cat([each.lse for each in found], 1).transpose(1, 2)
        return outs.to(query.dtype), lses
