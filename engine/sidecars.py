"""Sidecars: what is kept of every page beside its keys and values, as a pure function of the keys.

Written whenever the page is written, so a page that the prefix cache hands out brings its own.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from headway.engine.layer_spec import LayerSpec
from headway.kernels.page_summary import summarise_pages
from headway.kernels.store_kv import store_kv

Kind = Literal["bounds", "mean", "low_rank"]


@dataclass(frozen=True, slots=True, order=True)
class Sidecar:
    """One kind of sidecar.

    `bounds`: channel-wise maximum, then minimum, of a page's keys; `mean`: their mean; `low_rank`: every key
    in the first `rank` directions of a basis.
    """

    kind: Kind
    rank: int = 0

    def numbers(self, spec: LayerSpec, page_size: int) -> int:
        """Numbers that one page of a layer takes."""
        per_head = {"bounds": 2 * spec.key_dim, "mean": spec.key_dim, "low_rank": page_size * self.rank}
        return spec.num_kv_heads * per_head[self.kind]


def carries(spec: LayerSpec) -> bool:
    """Whether a layer has sidecars: it keeps KV of its own, and reads all of it."""
    return spec.owns_cache and spec.window is None


def sidecar_bytes(
    sidecars: Collection[Sidecar], specs: Sequence[LayerSpec], page_size: int, dtype: torch.dtype
) -> int:
    """Bytes that the sidecars of one page cost over all layers."""
    return dtype.itemsize * sum(
        sidecar.numbers(spec, page_size) for sidecar in sidecars for spec in specs if carries(spec)
    )


@dataclass(frozen=True, slots=True)
class WrittenPages:
    """The pages that a batch writes to, int64 [P], and how many tokens each holds afterwards."""

    pages: Tensor
    filled: Tensor


class SidecarStore:
    """The sidecars of all layers.

    Args:
        bases: for `low_rank`, float [Hkv, key_dim, rank] by layer_idx, orthonormal columns.
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
        self.bases: dict[int, Tensor] = {}
        self._tables: dict[int, dict[Sidecar, Tensor]] = {}
        for spec in specs:
            if not carries(spec):
                continue
            self._tables[spec.layer_idx] = {
                sidecar: torch.empty(
                    num_pages,
                    page_size if sidecar.kind == "low_rank" else 1,
                    spec.num_kv_heads,
                    sidecar.numbers(spec, 1) // spec.num_kv_heads,
                    dtype=dtype,
                    device=device,
                )
                for sidecar in sorted(sidecars)
            }

    def __bool__(self) -> bool:
        return any(self._tables.values())

    def of(self, layer_idx: int) -> Mapping[Sidecar, Tensor]:
        """Tables [num_pages, units, Hkv, numbers] of a layer; empty for one without sidecars."""
        return self._tables.get(layer_idx, {})

    def write(
        self, layer_idx: int, key: Tensor, key_cache: Tensor, written: WrittenPages, slot_mapping: Tensor
    ) -> None:
        """Bring a layer's sidecars up to date.

        Args:
            key: [T, Hkv, Dk], just stored.
            key_cache: the layer's keys, those included.
            slot_mapping: int64 [T], their cells.
        """
        tables = {sidecar.kind: table for sidecar, table in self.of(layer_idx).items()}
        if "bounds" in tables or "mean" in tables:
            summarise_pages(
                key_cache, written.pages, written.filled, bounds=tables.get("bounds"), mean=tables.get("mean")
            )
        if "low_rank" in tables:
            store_kv(self.project(layer_idx, key), None, tables["low_rank"], None, slot_mapping)

    def project(self, layer_idx: int, rows: Tensor) -> Tensor:
        """Keys [T, Hkv, Dk] or queries [T, Hq, Dk] in the layer's low-rank basis, same dtype."""
        basis = self.bases[layer_idx]
        grouped = rows.unflatten(1, (basis.shape[0], -1))
        return torch.einsum("tgnd,gdr->tgnr", grouped, basis.to(rows.dtype)).flatten(1, 2)
