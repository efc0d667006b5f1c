"""What the lists of a decode group say, as a CPU needs it: where the units lie, and how many tokens."""

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from torch import Tensor

from headway.kernels.paged_attention.plan import AttentionPlan, Numbers


class UnitPlaces(NamedTuple):
    """The block tables of a batch in terms of units, once for all layers that choose such units."""

    pages: Numbers  # all pages of all sequences; if units are smaller, what to add to a unit's number instead
    starts: Numbers | None  # [B, 1, 1]: where in `pages` a sequence begins; None: there is only one
    kv_lens: Sequence[int]
    numbers: Sequence[int]  # of the sequences in their batch
    per_page: int

    def of(self, sequences: Sequence[int]) -> "UnitPlaces":
        """Some of the sequences only."""
        starts = None if self.starts is None else self.starts[list(sequences)]
        kv_lens, numbers = ([column[b] for b in sequences] for column in (self.kv_lens, self.numbers))
        return self._replace(starts=starts, kv_lens=kv_lens, numbers=numbers)


class Chosen(NamedTuple):
    places: Numbers  # [B, Hs, W]: units of the cache in memory's order; any unit of the sequence as padding
    lengths: list[int]  # [B * Hs]: tokens listed, before the last page's unused cells and the padding


def unit_places(plan: AttentionPlan, unit: int) -> UnitPlaces:
    return plan.memo(("cpu units", unit), lambda: _unit_places(plan, unit))


def _unit_places(plan: AttentionPlan, unit: int) -> UnitPlaces:
    per_page = plan.page_size // unit
    tables = plan.host_tables
    if per_page > 1:
        tables = tuple((table - np.arange(len(table))) * per_page for table in tables)
    starts = np.cumsum([0, *map(len, tables[:-1])])[:, None, None] if len(tables) > 1 else None
    return UnitPlaces(np.concatenate(tables), starts, plan.host_kv_lens, range(len(tables)), per_page)


@lru_cache(maxsize=64)
def unit_cells(num_lists: int, num_kv_heads: int, unit: int) -> Numbers:
    """[Hs, 1, unit]: a unit's cells of one KV head among those of all."""
    heads = np.arange(num_lists) * num_kv_heads // num_lists
    return heads[:, None, None] + np.arange(unit) * num_kv_heads


def chosen(indices: Tensor, unit: int, where: UnitPlaces) -> Chosen:
    """Raises ValueError for a unit that its sequence does not have."""
    units: npt.NDArray[np.int32] = indices.numpy()
    _, num_lists, width = units.shape
    largest: list[int] = np.maximum.reduce(units, -1).ravel().tolist()
    lengths = []
    for i, last in enumerate(largest):
        kv_len = where.kv_lens[i // num_lists]
        beyond = (last + 1) * unit - kv_len
        if beyond >= unit:
            raise ValueError(
                f"indices[{where.numbers[i // num_lists]}] names unit {last}, of {unit} tokens each, "
                f"in a sequence of {kv_len} tokens"
            )
        lengths.append(width * unit - max(beyond, 0))
    if largest != units[:, :, -1].ravel().tolist() or min(largest) < 0:  # some list is padded
        counts: list[int] = (units >= 0).sum(-1).ravel().tolist()
        lengths = [length - (width - count) * unit for length, count in zip(lengths, counts, strict=True)]
        units = np.maximum(units[:, :, : max(1, *counts)], 0)
    pages = units if where.per_page == 1 else units // where.per_page
    if where.starts is not None:
        pages = pages + where.starts
    places: Numbers = where.pages.take(pages)
    if where.per_page > 1:
        places += units
    return Chosen(places, lengths)
