"""listed_scores on a CPU: the listed keys are copied side by side, one product scores them for each group.

A PyTorch call costs 2-5 us, a numpy call 1, the copy and the product of 4096 keys of 2 heads about 110: what
is small is done in numpy.
"""

import numpy as np
import torch
from torch import Tensor

from headway.kernels.cpu_workers import share_out
from headway.kernels.listed_scores import GroupReduction
from headway.kernels.paged_attention.plan import AttentionPlan, Numbers
from headway.kernels.selected_attention.cpu_lists import UnitPlaces, chosen, unit_cells, unit_places

COPY_BYTES = 1024 * 1024  # keys of one product; larger copies fall out of the CPU's cache
SHARED_BYTES = 1024 * 1024  # keys in all, from which on threads share the lists; meeting costs 50-100 us


def listed_scores(
    query: Tensor, key_cache: Tensor, plan: AttentionPlan, indices: Tensor, unit: int, scale: float,
    softcap: float | None, reduce: GroupReduction, active: Tensor | None,
) -> Tensor:  # fmt: skip
    where = unit_places(plan, unit)
    if active is None or active.all():
        return _score(query, key_cache, indices, unit, where, scale, softcap, reduce)
    shape = len(query), key_cache.shape[2], indices.shape[2] * unit
    scores = torch.full(shape, float("-inf"))
    rows = active.nonzero().squeeze(1)
    if len(rows):
        some = where.of(rows.tolist())
        scores[rows] = _score(query[rows], key_cache, indices[rows], unit, some, scale, softcap, reduce)
    return scores


def _score(
    query: Tensor, key_cache: Tensor, indices: Tensor, unit: int, where: UnitPlaces, scale: float,
    softcap: float | None, reduce: GroupReduction,
) -> Tensor:  # fmt: skip
    batch, num_lists, num_units = indices.shape
    num_kv_heads, dim = key_cache.shape[2:]
    groups = query.float().numpy().reshape(batch * num_kv_heads, -1, dim) * np.float32(scale)
    if reduce == "mean" and softcap is None:  # the mean of products is the product of the mean
        groups = groups.mean(1, keepdims=True)

    places, lengths = chosen(indices, unit, where)
    rows = (places * (unit * num_kv_heads))[..., None] + unit_cells(num_kv_heads, num_kv_heads, unit)
    rows = rows.reshape(batch * num_kv_heads, -1)
    scores = np.empty((batch * num_kv_heads, num_units * unit), dtype=np.float32)
    step = max(1, COPY_BYTES // (4 * dim * rows.shape[1]))

    def score(lists: range) -> None:
        for first in range(lists.start, lists.stop, step):
            some = slice(first, min(first + step, lists.stop))
            keys = _copy(key_cache, rows[some])
            products = torch.bmm(torch.from_numpy(groups[some]), keys.transpose(1, 2))  # [lists, G, N]
            if softcap is not None:
                products.div_(softcap).tanh_().mul_(softcap)
                if reduce == "mean":
                    products = products.mean(1, keepdim=True)
            np.maximum.reduce(products.numpy(), 1, out=scores[some, : rows.shape[1]])

    if 4 * dim * rows.size < SHARED_BYTES:
        score(range(len(rows)))
    else:
        share_out(score, range(len(rows)))

    by_list = scores.reshape(batch * num_lists, num_kv_heads // num_lists, -1)
    for one, length in zip(by_list, lengths, strict=True):
        one[:, length:] = -np.inf  # what lies there may be NaN
    return torch.from_numpy(scores.reshape(batch, num_kv_heads, -1))


def _copy(cache: Tensor, rows: Numbers) -> Tensor:
    """Keys fp32 `[lists, N, D]` of rows `[lists, N]` of the cache as [num_pages * page_size * Hkv, D]."""
    dim = cache.shape[3]
    if not cache.is_contiguous():
        return cache[torch.unravel_index(torch.from_numpy(rows), cache.shape[:3])].float()
    if cache.dtype == torch.float32 and rows.size * dim * 4 <= COPY_BYTES:  # numpy copies short rows faster
        return torch.from_numpy(cache.numpy().reshape(-1, dim).take(rows, 0))
    copied = cache.view(-1, dim).index_select(0, torch.from_numpy(rows.ravel()))
    return copied.float().view(*rows.shape, dim)
