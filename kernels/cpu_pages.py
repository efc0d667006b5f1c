"""A paged cache as compiled kernels read it: its memory, and a batch's pages as one row of numbers."""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from headway.kernels.cpu_compile import flat
from headway.kernels.paged_attention.plan import AttentionPlan, Numbers


class PageTables(NamedTuple):
    pages: Numbers  # those of all sequences, one after the other
    starts: Numbers  # [B]: of each sequence, its first place in `pages`
    kv_lens: Numbers  # [B]


def strided(cache: Tensor) -> tuple[NDArray[Any], tuple[int, int, int]]:
    """`flat` memory of `[num_pages, units, heads, D]`, and the strides of its pages, units and heads."""
    if cache.stride(3) != 1:
        cache = cache.contiguous()
    page, unit, head, _ = cache.stride()
    return flat(cache), (page, unit, head)


def strided_rows(tensor: Tensor) -> tuple[NDArray[Any], tuple[int, int, int]]:
    """`flat` memory of `[R, H, D]`, and its strides."""
    row, head, number = tensor.stride()
    return flat(tensor), (row, head, number)


def page_tables(plan: AttentionPlan) -> PageTables:
    """Worked out once for a batch and all its layers."""
    return plan.memo("cpu pages", lambda: _page_tables(plan))


def _page_tables(plan: AttentionPlan) -> PageTables:
    starts = np.cumsum([0, *map(len, plan.host_tables[:-1])])
    return PageTables(np.concatenate(plan.host_tables), starts, np.array(plan.host_kv_lens))
