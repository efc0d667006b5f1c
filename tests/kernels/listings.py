"""What listed_scores should return for a group of random lists: token by token, in fp64."""

from typing import Any

import torch
from torch import Tensor

from headway.kernels.listed_scores import listed_scores

from .selections import Selections


def oracle(
    case: Selections,
    scale: float = 1.0,
    softcap: float | None = None,
    active: Tensor | None = None,
) -> Tensor:
    batch, num_kv_heads = len(case.query), case.keys.shape[2]
    out = torch.full((batch, num_kv_heads, case.width * case.unit), -torch.inf, dtype=torch.float64)
    for b in range(batch) if active is None else active.nonzero().flatten().tolist():
        for kv_head in range(num_kv_heads):
            own = case.query[b].chunk(num_kv_heads)[kv_head].double()
            units = case.lists[b][kv_head if len(case.lists[b]) > 1 else 0]
            for place in range(len(units) * case.unit):
                token = units[place // case.unit] * case.unit + place % case.unit
                if token < case.kv_lens[b]:
                    page, offset = divmod(token, case.page_size)
                    scores = own @ case.keys[case.tables[b][page], offset, kv_head].double() * scale
                    if softcap is not None:
                        scores = softcap * torch.tanh(scores / softcap)
                    out[b, kv_head, place] = scores.max()
    return out


def run(case: Selections, **kind: Any) -> Tensor:
    return listed_scores(case.query, case.key_cache, case.plan, case.indices, case.unit, **kind)


def check(case: Selections, atol: float = 2e-5, **kind: Any) -> None:
    scores = run(case, **kind)
    assert scores.dtype == torch.float32
    torch.testing.assert_close(scores.double(), oracle(case, **kind), atol=atol, rtol=10 * atol)
