"""What last_queries must return, row by row in fp64 over the plain keys."""

import torch
from torch import Tensor

from .conftest import Batch


def oracle(
    batch: Batch, rows: int, scale: float = 0.2, softcap: float | None = None, sinks: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Vertical and slash fp64 [Hq, N] of the last `rows` queries of a batch of one sequence."""
    (keys,) = batch.keys
    length, kv_heads = keys.shape[:2]
    heads = batch.query.shape[1]
    vertical, slash = torch.zeros(2, heads, length, dtype=torch.float64)
    for position in range(length - rows, length):
        query = batch.query[position - length].double()
        for head in range(heads):
            logits = keys[: position + 1, head // (heads // kv_heads)].double() @ query[head] * scale
            if softcap is not None:
                logits = softcap * torch.tanh(logits / softcap)
            sink = torch.zeros(0) if sinks is None else sinks[head : head + 1]
            mass = torch.cat((logits, sink.double())).softmax(0)[: position + 1]
            vertical[head, : position + 1] += mass
            slash[head, : position + 1] += mass.flip(0)
    return vertical, slash


def check(run, batch: Batch, rows: int, atol: float = 3e-6, **kind) -> None:
    """`run` is last_queries, on a batch of one sequence with at least `rows` queries."""
    query = batch.query[len(batch.query) - rows :]
    found = run(query, batch.key_cache, batch.plan, scale=0.2, **kind)
    for made, expected in zip(found, oracle(batch, rows, **kind), strict=True):
        assert made.dtype == torch.float32
        torch.testing.assert_close(made.double(), expected, atol=atol, rtol=1e-4)
