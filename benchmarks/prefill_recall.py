"""How much of the exact attention mass a prefill method reads."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor

from headway.engine.methods.prefill import AnyMethod
from headway.engine.selection.chunk_view import ChunkView
from headway.kernels.paged_attention import paged_attention, plan

ROWS = 15


@contextmanager
def watched(method: AnyMethod) -> Iterator[list[float]]:
    """Collects, per layer and chunk that selects, the mass read over the mass of all earlier keys.

    It is the mean over heads and some rows of exp(lse - exact lse), whatever the method does to attend.
    """
    found: list[float] = []
    original = method.attend

    def attend(query: Tensor, chunk: ChunkView) -> tuple[Tensor, Tensor]:
        out, lse = original(query, chunk)
        found.append(_mass(query, chunk, lse))
        return out, lse

    method.attend = attend  # type: ignore[method-assign]
    try:
        yield found
    finally:
        del method.attend


def _mass(query: Tensor, chunk: ChunkView, lse: Tensor) -> float:
    step = max(1, len(query) // ROWS)
    some = slice(step // 2, None, step)
    ends = range(chunk.start + step // 2 + 1, chunk.end + 1, step)
    pages = chunk.plan.host_tables[0]
    alone = plan([1] * len(ends), ends, [pages] * len(ends), chunk.page_size, chunk.plan.device)
    spec = chunk.spec
    _, exact = paged_attention(
        query[some], chunk.key_cache, chunk.value_cache, alone,
        scale=spec.scale, softcap=spec.softcap, sinks=spec.sinks,
    )  # fmt: skip
    return float((lse[some] - exact).exp().mean())
