"""The host side of paged attention: what one batch looks like, worked out once and shared by its layers."""

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Numbers = npt.NDArray[np.int64]
Schedule = TypeVar("Schedule")


@dataclass(frozen=True, eq=False)
class AttentionPlan:
    """One batch of B sequences, T query tokens in all.

    The device tensors are views of `packed`, so that a CUDA graph can keep one buffer and copy each step's
    `packed` into it; everything a GPU kernel reads per step is on the device. The host copies serve grid
    sizes and the CPU.
    """

    page_size: int
    packed: Tensor  # int32, one transfer per batch
    cu_seqlens_q: Tensor  # int32 [B + 1]
    kv_lens: Tensor  # int32 [B], new tokens included
    block_table: Tensor  # int32 [B, max_pages], rows padded with page 0
    num_tokens: int
    host_q_lens: tuple[int, ...]
    host_kv_lens: tuple[int, ...]
    host_table: Numbers  # `block_table`
    host_tables: tuple[Numbers, ...]  # its rows, exactly the pages that hold keys
    max_page: int
    _memo: dict[Hashable, Any] = field(default_factory=dict, repr=False)

    def new_tokens(self) -> tuple[Numbers, Numbers]:
        """Position and slot of each query token, int64 [T] on the host."""
        q_lens, kv_lens = np.array(self.host_q_lens), np.array(self.host_kv_lens)
        rows = np.repeat(np.arange(len(q_lens)), q_lens)
        positions = np.arange(self.num_tokens) + (kv_lens - np.cumsum(q_lens))[rows]
        page, offset = np.divmod(positions, self.page_size)
        return positions, self.host_table[rows, page] * self.page_size + offset

    def memo(self, key: Hashable, build: Callable[[], Schedule]) -> Schedule:
        """A version's own schedule, built by the first layer that needs it."""
        if key not in self._memo:
            self._memo[key] = build()
        found: Schedule = self._memo[key]
        return found


def plan(
    q_lens: Sequence[int],
    kv_lens: Sequence[int],
    block_tables: Sequence[Sequence[int] | npt.NDArray[np.integer[Any]]],
    page_size: int,
    device: torch.device | str,
) -> AttentionPlan:
    """Describe a batch for `paged_attention`, once for all its layers.

    Sequence b brings `q_lens[b]` new tokens, the last of its `kv_lens[b]` tokens; `block_tables[b]` names
    the pages of those, in order, and may be longer than needed. Chunks and decodes mix freely.

    Raises ValueError for an empty batch or sequence, more new tokens than tokens, a table that is too short
    or holds a negative page, and lists of different lengths.
    """
    if not q_lens or not len(q_lens) == len(kv_lens) == len(block_tables):
        raise ValueError(
            f"q_lens, kv_lens and block_tables must have one equal, positive length, "
            f"not {len(q_lens)}, {len(kv_lens)} and {len(block_tables)}"
        )
    if page_size < 1:
        raise ValueError(f"page_size must be positive, not {page_size}")
    batch, used = len(q_lens), [-(-kv_len // page_size) for kv_len in kv_lens]
    table = np.zeros((batch, max(used)), dtype=np.int64)
    for b, (q_len, kv_len, pages) in enumerate(zip(q_lens, kv_lens, block_tables, strict=True)):
        if not 1 <= q_len <= kv_len:
            raise ValueError(f"q_lens[{b}] = {q_len} must lie between 1 and kv_lens[{b}] = {kv_len}")
        if len(pages) < used[b]:
            raise ValueError(f"block_tables[{b}] has {len(pages)} pages, {kv_len} tokens need {used[b]}")
        table[b, : used[b]] = pages[: used[b]]
    if table.min() < 0:
        raise ValueError(f"block_tables[{int(table.argmin()) // table.shape[1]}] holds a negative page")

    host = np.zeros(2 * batch + 1 + table.size, dtype=np.int32)
    np.cumsum(q_lens, out=host[1 : batch + 1])
    host[batch + 1 : 2 * batch + 1] = kv_lens
    host[2 * batch + 1 :] = table.ravel()
    packed = torch.from_numpy(host).to(device)
    return AttentionPlan(
        page_size=page_size,
        packed=packed,
        cu_seqlens_q=packed[: batch + 1],
        kv_lens=packed[batch + 1 : 2 * batch + 1],
        block_table=packed[2 * batch + 1 :].view(table.shape),
        num_tokens=int(host[batch]),
        host_q_lens=tuple(q_lens),
        host_kv_lens=tuple(kv_lens),
        host_table=table,
        host_tables=tuple(table[b, : used[b]] for b in range(batch)),
        max_page=int(table.max()),
    )
