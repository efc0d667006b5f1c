"""Sidecars: what is kept of every page beside its keys and values, as a pure function of the keys.

Written whenever the page is written, so a page that the prefix cache hands out brings its own.
"""

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from headway.engine.chunk_keys import chunk_keys
from headway.engine.layer_spec import LayerSpec
from headway.kernels.page_summary import summarise_pages
from headway.kernels.store_kv import store_kv

Kind = Literal["bounds", "mean", "chunk_key", "low_rank"]


@dataclass(frozen=True, slots=True, order=True)
class Sidecar:
    """One kind of sidecar.

    `bounds`: channel-wise maximum, then minimum, of the keys of `unit` tokens (0: of a page); `mean`: their
    mean; `chunk_key`: see `chunk_keys`; `low_rank`: every key in the first `rank` directions (0: a quarter
    of all) of the basis in the file `basis` (none: see `low_rank`).
    """

    kind: Kind
    rank: int = 0
    unit: int = 0
    basis: str = ""

    def tokens(self, page_size: int) -> int:
        """Tokens that one row of the table stands for; never more than a page."""
        if self.kind == "low_rank":
            return 1
        return min(self.unit, page_size) if self.unit else page_size

    def shape(self, spec: LayerSpec, page_size: int) -> tuple[int, int, int]:
        """(rows, Hkv, numbers) of one page of a layer."""
        sizes = {"bounds": 2 * spec.key_dim, "low_rank": self.rank or max(1, spec.key_dim // 4)}
        rows = page_size // self.tokens(page_size)
        return rows, spec.num_kv_heads, sizes.get(self.kind, spec.key_dim)

    def dtype(self, keys: torch.dtype) -> torch.dtype:
        """Of the table beside keys of a dtype: bounds need few digits, and reading them is what they cost."""
        return torch.bfloat16 if self.kind == "bounds" and keys == torch.float32 else keys


def carries(spec: LayerSpec) -> bool:
    """Whether a layer has sidecars: it keeps KV of its own, and some of its heads read all of it."""
    return spec.owns_cache and spec.window is None and spec.num_kv_heads > 0


def sidecar_bytes(
    sidecars: Collection[Sidecar], specs: Sequence[LayerSpec], page_size: int, dtype: torch.dtype
) -> int:
    """Bytes that the sidecars of one page cost over all layers."""
    return sum(
        sidecar.dtype(dtype).itemsize * math.prod(sidecar.shape(spec, page_size))
        for sidecar in sidecars
        for spec in specs
        if carries(spec)
    )


@dataclass(frozen=True, slots=True, eq=False)
class WrittenPages:
    """The cells that a batch writes; each of their pages is full up to the last of them afterwards.

    Attributes:
        spans: [P, 3], a page, its first written cell and the one behind its last.
    """

    spans: npt.NDArray[np.int64]
    page_size: int
    device: torch.device
    _parts: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict, repr=False)

    @classmethod
    def of(
        cls, runs: Iterable[tuple[Sequence[int], int, int]], page_size: int, device: torch.device
    ) -> "WrittenPages":
        """Of runs of tokens: the pages of their sequence, their first token and the one behind their last."""
        spans = [
            (pages[index], max(start - index * page_size, 0), min(stop - index * page_size, page_size))
            for pages, start, stop in runs
            for index in range(start // page_size, -(-stop // page_size))
        ]
        return cls(np.array(spans, np.int64), page_size, device)

    def parts(self, tokens: int) -> tuple[Tensor, Tensor]:
        """Parts of pages, of `tokens` tokens each, that are written to, and how many tokens each then holds.

        Both int64 [R]; part i of page p has the number p * (page_size // tokens) + i.
        """
        if tokens not in self._parts:
            pages, starts, stops = self.spans.T
            first = starts // tokens
            counts = -(-stops // tokens) - first
            behind = counts.cumsum()
            span = np.repeat(np.arange(len(counts)), counts)
            part = np.arange(behind[-1]) - (behind - counts - first)[span]
            numbers = pages[span] * (self.page_size // tokens) + part
            filled = np.minimum(stops[span] - part * tokens, tokens)
            both = torch.from_numpy(np.stack((numbers, filled))).to(self.device)
            self._parts[tokens] = both[0], both[1]
        return self._parts[tokens]


class SidecarStore:
    """The sidecars of all layers.

    Attributes:
        kept: what is kept of every page.
        bases: of a `low_rank` sidecar, by layer_idx: [Hkv, key_dim, rank] with orthonormal columns, in the
            cache's dtype.
    """

    def __init__(
        self,
        sidecars: Collection[Sidecar],
        specs: Sequence[LayerSpec],
        num_pages: int,
        page_size: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self.kept = tuple(sorted(sidecars))
        self.bases: dict[Sidecar, dict[int, Tensor]] = {}
        self._heads = slice(None)
        self._scales = {spec.layer_idx: spec.scale for spec in specs}
        self._tables: dict[int, dict[Sidecar, Tensor]] = {}
        for spec in specs:
            if not carries(spec):
                continue
            self._tables[spec.layer_idx] = {
                sidecar: torch.empty(
                    num_pages, *sidecar.shape(spec, page_size), dtype=sidecar.dtype(dtype), device=device
                )
                for sidecar in self.kept
            }

    def __bool__(self) -> bool:
        return any(self._tables.values())

    def of(self, layer_idx: int) -> Mapping[Sidecar, Tensor]:
        """Tables [num_pages, rows, Hkv, numbers] of a layer; empty for one without sidecars."""
        tables = self._tables.get(layer_idx, {})
        if self._heads == slice(None):
            return tables
        return {sidecar: table[:, :, self._heads] for sidecar, table in tables.items()}

    def of_heads(self, kv_heads: slice) -> "SidecarStore":
        """The same tables, of these KV heads alone."""
        store = copy(self)
        store._heads = kv_heads
        return store

    def only(self, sidecars: Collection[Sidecar]) -> "SidecarStore":
        """The same tables, of these sidecars alone: what is written to it leaves the others as they are."""
        store = copy(self)
        store.kept = tuple(sidecar for sidecar in self.kept if sidecar in sidecars)
        store._tables = {
            layer: {sidecar: tables[sidecar] for sidecar in store.kept}
            for layer, tables in self._tables.items()
        }
        return store

    def write(
        self, layer_idx: int, key: Tensor, key_cache: Tensor, written: WrittenPages, slot_mapping: Tensor
    ) -> None:
        """Bring a layer's sidecars up to date.

        Args:
            key: [T, Hkv, Dk], just stored.
            key_cache: the layer's keys, those included.
            slot_mapping: int64 [T], their cells.
        """
        for sidecar, table in self.of(layer_idx).items():
            if sidecar.kind == "low_rank":
                store_kv(self.project(layer_idx, sidecar, key), None, table, None, slot_mapping)
                continue
            tokens = key_cache.shape[1] // table.shape[1]
            parts, filled = written.parts(tokens)
            keys, rows = key_cache.view(-1, tokens, *key_cache.shape[2:]), table.view(-1, *table.shape[2:])
            if sidecar.kind == "chunk_key":
                rows[parts] = chunk_keys(keys[parts], filled, self._scales[layer_idx])
            else:
                summarise_pages(keys, parts, filled, **{sidecar.kind: rows.unsqueeze(1)})

    def project(self, layer_idx: int, sidecar: Sidecar, rows: Tensor) -> Tensor:
        """Keys [T, Hkv, Dk] or queries [T, Hq, Dk] in the basis of a `low_rank` sidecar, same dtype."""
        basis = self.bases[sidecar][layer_idx][self._heads]
        grouped = rows.view(rows.shape[0], basis.shape[0], -1, rows.shape[2])
        return torch.einsum("tgnd,gdr->tgnr", grouped, basis).flatten(1, 2)
