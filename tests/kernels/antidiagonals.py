"""What antidiagonal_mass must be, in fp64 over plain tensors."""

from typing import Any

import torch
from torch import Tensor

from headway.kernels.antidiagonal import antidiagonal_mass


def check(
    batch: Any, block: int, stride: int, softcap: float | None = None, scale: float = 0.2, atol: float = 2e-5
) -> None:
    """One sequence's masses beside the oracle's."""
    mass = antidiagonal_mass(
        batch.query, batch.key_cache, batch.plan, block, stride, scale=scale, softcap=softcap
    )
    assert mass.dtype == torch.float32
    expected = oracle(batch, block, stride, scale, softcap)
    torch.testing.assert_close(mass.double(), expected, atol=atol, rtol=10 * atol)


def oracle(batch: Any, block: int, stride: int, scale: float, softcap: float | None = None) -> Tensor:
    """Every product of a query and a key, of which those on the antidiagonals of the groups count."""
    (keys,) = batch.keys
    tokens, heads = batch.query.shape[:2]
    length = len(keys)
    before = length - tokens
    mass = torch.zeros(heads, -(-tokens // block), -(-length // block), dtype=torch.float64)
    counted = torch.zeros_like(mass)
    on = (torch.arange(before, length) % stride).unsqueeze(1) + torch.arange(length) % stride == stride - 1
    for head in range(heads):
        products = batch.query[:, head].double() @ keys[:, head // (heads // keys.shape[1])].double().T
        products = products * on * scale
        for row in range(0, tokens, stride):
            part = products[row : row + stride, : before + row + stride]
            sums = torch.stack([columns.sum() for columns in part.split(stride, 1)]) / len(part)
            if softcap is not None:
                sums = softcap * (sums / softcap).tanh()
            for group, weight in enumerate((sums - sums.max()).exp() / (sums - sums.max()).exp().sum()):
                mass[head, row // block, group * stride // block] += weight
            counted[head, row // block] += 1
    return mass / counted
