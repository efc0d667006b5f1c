"""The host side of paged attention: what one batch looks like, worked out once and shared by its layers."""

from bisect import bisect_right
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import accumulate
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
    `packed` into it; everything a GPU kernel reads per step is on the device. The host numbers serve grid
    sizes and the CPU, which never asks for `packed`.
    """

    page_size: int
    device: torch.device
    num_tokens: int
    host_starts: tuple[int, ...]  # of each sequence, its first query token
    host_q_lens: tuple[int, ...]
    host_kv_lens: tuple[int, ...]
    host_tables: tuple[Numbers, ...]  # exactly the pages that hold keys
    max_page: int
    _memo: dict[Hashable, Any] = field(default_factory=dict, repr=False)

    @cached_property
    def packed(self) -> Tensor:
        """int32, one transfer per batch: `cu_seqlens_q`, `kv_lens`, `block_table`."""
        table = np.zeros((len(self.host_tables), self.max_pages), dtype=np.int32)
        for row, pages in zip(table, self.host_tables, strict=True):
            row[: len(pages)] = pages
        lens = np.array([*self.host_starts, self.num_tokens, *self.host_kv_lens], dtype=np.int32)
        return torch.from_numpy(np.concatenate((lens, table.ravel()))).to(self.device)

    @cached_property
    def cu_seqlens_q(self) -> Tensor:
        """int32 [B + 1]"""
        return self.packed[: len(self.host_q_lens) + 1]

    @cached_property
    def kv_lens(self) -> Tensor:
        """int32 [B], new tokens included."""
        batch = len(self.host_q_lens)
        return self.packed[batch + 1 : 2 * batch + 1]

    @cached_property
    def block_table(self) -> Tensor:
        """int32 [B, max_pages], rows padded with page 0."""
        batch = len(self.host_q_lens)
        return self.packed[2 * batch + 1 :].view(batch, -1)

    @cached_property
    def max_pages(self) -> int:
        """Pages of the longest sequence."""
        return max(map(len, self.host_tables))

    def rows(self, sequence: int) -> slice:
        """A sequence's query tokens."""
        start = self.host_starts[sequence]
        return slice(start, start + self.host_q_lens[sequence])

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
    used = [-(-kv_len // page_size) for kv_len in kv_lens]
    for b, (q_len, kv_len, pages, count) in enumerate(zip(q_lens, kv_lens, block_tables, used, strict=True)):
        if not 1 <= q_len <= kv_len:
            raise ValueError(f"q_lens[{b}] = {q_len} must lie between 1 and kv_lens[{b}] = {kv_len}")
        if len(pages) < count:
            raise ValueError(f"block_tables[{b}] has {len(pages)} pages, {kv_len} tokens need {count}")
    tables = [np.asarray(pages[:count], np.int64) for pages, count in zip(block_tables, used, strict=True)]
    numbers = np.concatenate(tables)
    if numbers.min() < 0:
        b = bisect_right(list(accumulate(used)), int(numbers.argmin()))
        raise ValueError(f"block_tables[{b}] holds a negative page")
    *starts, num_tokens = accumulate(q_lens, initial=0)
    return AttentionPlan(
        page_size=page_size,
        device=torch.device(device),
        num_tokens=num_tokens,
        host_starts=tuple(starts),
        host_q_lens=tuple(q_lens),
        host_kv_lens=tuple(kv_lens),
        host_tables=tuple(tables),
        max_page=int(numbers.max()),
    )
