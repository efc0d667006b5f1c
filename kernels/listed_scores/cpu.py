"""listed_scores on a CPU: a list's keys are copied side by side, one product scores them for the whole group.

Fixed costs count (2-5 us for each PyTorch call beside 40 us for a copy of 512 KiB), so positions are worked
out in numpy.
"""

import numpy as np
import torch
from torch import Tensor

from headway.kernels.listed_scores import GroupReduction
from headway.kernels.paged_attention.plan import AttentionPlan, Numbers
from headway.kernels.selected_attention.cpu_lists import UnitPlaces, chosen, unit_places

COPY_BYTES = 1024 * 1024  # keys of one product; larger copies fall out of the CPU's cache


def listed_scores(
    query: Tensor, key_cache: Tensor, plan: AttentionPlan, indices: Tensor, unit: int, scale: float,
    softcap: float | None, reduce: GroupReduction, active: Tensor | None,
) -> Tensor:  # fmt: skip
    where = plan.memo(("cpu units", unit), lambda: unit_places(plan, unit))
    if active is None or active.all():
        return _score(query, key_cache, indices, unit, where, scale, softcap, reduce)
    shape = len(query), key_cache.shape[2], indices.shape[2] * unit
    scores = torch.full(shape, float("-inf"))
    if active.any():
        rows = active.nonzero().squeeze(1)
        some = where.of(rows.tolist())
        scores[rows] = _score(query[rows], key_cache, indices[rows], unit, some, scale, softcap, reduce)
    return scores


def _score(
    query: Tensor, key_cache: Tensor, indices: Tensor, unit: int, where: UnitPlaces, scale: float,
    softcap: float | None, reduce: GroupReduction,
) -> Tensor:  # fmt: skip
    batch, num_lists, num_units = indices.shape
    num_kv_heads, dim = key_cache.shape[2:]
    groups = query.float().reshape(batch * num_kv_heads, -1, dim)
    if scale != 1.0:
        groups = groups * scale
    if reduce == "mean" and softcap is None:  # the mean of products is the product of the mean
        groups = groups.mean(1, keepdim=True)

    places, lengths = chosen(indices, unit, where)
    cells = np.arange(unit) * num_kv_heads + np.arange(num_kv_heads)[:, None, None]  # [Hkv, 1, unit]
    rows = (places[..., None] * (unit * num_kv_heads) + cells).reshape(batch * num_kv_heads, -1)
    scores = torch.empty(batch, num_kv_heads, num_units * unit)
    into = scores.view(batch * num_kv_heads, -1)[:, : rows.shape[1]]
    step = max(1, COPY_BYTES // (4 * dim * rows.shape[1]))
    for first in range(0, len(rows), step):
        some = slice(first, first + step)
        keys = _copy(key_cache, rows[some])
        products = torch.bmm(groups[some], keys.transpose(1, 2))  # [lists, G, N]
        if softcap is not None:
            products.div_(softcap).tanh_().mul_(softcap)
        if reduce == "max":
            torch.amax(products, 1, out=into[some])
        else:
            torch.mean(products, 1, out=into[some])

    by_list = scores.numpy().reshape(batch * num_lists, num_kv_heads // num_lists, -1)
    for one, length in zip(by_list, lengths, strict=True):
        one[:, length:] = -np.inf
    return scores


def _copy(cache: Tensor, rows: Numbers) -> Tensor:
    """Keys fp32 `[lists, N, D]` of rows `[lists, N]` of the cache seen as [num_pages * page_size * Hkv, D]."""
    dim = cache.shape[3]
    if not cache.is_contiguous():
        copied = cache[torch.unravel_index(torch.from_numpy(rows), cache.shape[:3])]
    elif cache.dtype == torch.float32 and rows.size * dim * 4 <= COPY_BYTES:
        copied = torch.from_numpy(cache.numpy().reshape(-1, dim).take(rows, 0))  # short rows at twice the speed
    else:
        copied = cache.view(-1, dim).index_select(0, torch.from_numpy(rows.ravel()))
    return copied.float().view(*rows.shape, dim)
