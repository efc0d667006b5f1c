"""flexprefill: each head's pattern and budget by what its last queries attend to (FlexPrefill, 2502.20766).

The probe, the exact attention of a chunk's last queries, decides for each query head:

- Where their mean query with the mean keys of blocks predicts it (square root of the Jensen-Shannon
  divergence below `tau`), that is trusted for all rows: tiles read the blocks with the largest share of the
  predicted attention, the fewest over the whole chunk that reach `gamma`.
- Elsewhere, the fewest columns that reach `gamma` of the probe's mass, and the fewest diagonals.

Other than published: the probe are the last queries of each chunk, not of the prompt. Columns and diagonals
are read as they are, where the code reads whole blocks of columns and of each diagonal only the blocks it
begins in; so a budget counts keys that a row reads, and a band of 16 diagonals counts as `tile` keys. What
is always read counts towards `gamma`, and `max_budget` comes before it.
"""

from typing import Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor
from torch.nn.functional import pad

from headway.engine.methods.prefill.base import ChunkMethod
from headway.engine.selection.blocks import candidates, pooled_scores
from headway.engine.selection.chunk_probe import ProbeSettings, probe
from headway.engine.selection.chunk_view import ChunkView
from headway.engine.selection.fewest import fewest
from headway.engine.selection.prefill_selection import PrefillSelection
from headway.engine.selection.prefill_settings import gate
from headway.engine.selection.settings import Count, Positive
from headway.engine.selection.slashes import (
    band_cells,
    bands_of,
    covering,
    last_choosing_tile,
    selection_of,
    span_of,
    useful_bands,
    useful_columns,
)


class Settings(ProbeSettings):
    """A higher gamma reads more; a higher tau trusts the mean vectors of more heads."""

    method: Literal["flexprefill"] = "flexprefill"
    dense_below: Count = gate(32_768)
    gamma: float = Field(
        0.95, gt=0, le=1.01, description="Share of the attention to read; above 1: everything."
    )
    tau: float = Field(
        0.1, ge=0, le=1, description="Distance up to which mean vectors are trusted; 0: never."
    )
    min_budget: Count = Field(
        1024, description="Keys that a head's columns, and its diagonals, at least read."
    )
    max_budget: Positive = Field(
        8192, description="Keys that each of them, or a tile's blocks, at most read."
    )

    @model_validator(mode="after")
    def _ordered_budgets(self) -> Self:
        if self.max_budget < self.min_budget:
            raise ValueError(
                f"max_budget must be at least min_budget = {self.min_budget}, not {self.max_budget}"
            )
        return self


class Method(ChunkMethod[Settings]):
    """Blocks, or columns and diagonals, for each query head."""

    def select(self, query: Tensor, chunk: ChunkView) -> PrefillSelection:
        """Spans of the cells of blocks and bands, and the columns beside them."""
        settings, tile = self.settings, self.settings.tile
        span, last_tile = span_of(tile), last_choosing_tile(chunk, settings)
        if last_tile is None:
            return PrefillSelection()
        last, vertical, slash = probe(query, chunk, settings.probe)
        means = block_means(chunk.keys(), tile)
        trusted = _predicts(last, means, vertical, chunk, tile) < settings.tau
        share = torch.where(trusted, 0.0, settings.gamma).unsqueeze(1)
        least, most = (-(-budget // tile) for budget in (settings.min_budget, settings.max_budget))
        columns = covering(
            vertical, useful_columns(chunk, settings, last_tile), share,
            settings.min_budget, settings.max_budget,
        )  # fmt: skip
        bands = covering(
            bands_of(slash, span), useful_bands(chunk, settings, len(last), span), share, least, most
        )
        count = last_tile // tile
        blocks = _blocks(query, means[: count + 1], chunk, settings, most)[..., :count]
        blocks &= trusted.view(-1, 1, 1)
        cells = blocks.repeat_interleave(tile // span, -1)
        cells |= band_cells(bands, chunk, tile, last_tile // span)
        return selection_of(cells, columns, chunk, settings, most * (2 * tile // span + 1))


def block_means(keys: Tensor, block: int) -> Tensor:
    """Mean keys fp32 [ceil(N / block), Hkv, D] of keys [N, Hkv, D]; the last block may be shorter."""
    whole = len(keys) // block * block
    means = keys[:whole].reshape(-1, block, *keys.shape[1:]).mean(1, dtype=torch.float32)
    if whole == len(keys):
        return means
    return torch.cat((means, keys[whole:].mean(0, keepdim=True, dtype=torch.float32)))


def _predicts(last: Tensor, means: Tensor, vertical: Tensor, chunk: ChunkView, block: int) -> Tensor:
    """[Hq]: how far the attention that mean vectors predict lies from the true one, over blocks of keys."""
    spec = chunk.spec
    predicted = pooled_scores(last, means, len(last), spec.scale, spec.softcap).softmax(-1)[:, 0]
    room = len(means) * block - vertical.shape[1]
    true = pad(vertical, (0, room)).view(len(vertical), -1, block).sum(-1)
    return divergence(predicted, true / true.sum(-1, keepdim=True)).sqrt()


def divergence(first: Tensor, second: Tensor) -> Tensor:
    """Jensen-Shannon divergence [H] in nats of distributions [H, n]; a share of 0 adds nothing."""
    middle = (first + second) / 2
    terms = [torch.xlogy(each, each) - torch.xlogy(each, middle) for each in (first, second)]
    return (terms[0] + terms[1]).sum(-1).clamp_min(0.0) / 2


def _blocks(query: Tensor, means: Tensor, chunk: ChunkView, settings: Settings, most: int) -> Tensor:
    """bool [Hq, tiles, n]: the fewest blocks of the chunk that reach gamma of the predicted attention."""
    tile, spec = settings.tile, chunk.spec
    begin = torch.arange(0, len(means) * tile, tile, device=means.device)
    future = begin > chunk.tile_starts(tile).unsqueeze(1)
    scores = pooled_scores(query, means, tile, spec.scale, spec.softcap)
    mass = scores.masked_fill_(future, -torch.inf).softmax(-1)
    allowed = candidates(chunk, settings, tile, len(means)) & ~future
    ranked, order = mass.masked_fill(~allowed, -1.0).sort(stable=True, dim=-1, descending=True)
    ranked[..., most:] = -1.0  # no row may exceed its budget
    held = mass.masked_fill(allowed, 0.0).sum((1, 2)).unsqueeze(1)
    by_rank = fewest(ranked.flatten(1), settings.gamma * mass.shape[1] - held).view_as(order)
    return torch.empty_like(by_rank).scatter_(-1, order, by_rank)
