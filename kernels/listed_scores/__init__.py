"""listed_scores: exact scores of the tokens of listed units, to rank the tokens of a shortlist."""

from collections.abc import Callable
from functools import cache
from importlib import import_module

from torch import Tensor

from headway.kernels import checks, dispatch
from headway.kernels.paged_attention.plan import AttentionPlan

__all__ = ["listed_scores"]


def listed_scores(
    query: Tensor,
    key_cache: Tensor,
    plan: AttentionPlan,
    indices: Tensor,
    unit: int,
    *,
    scale: float = 1.0,
    softcap: float | None = None,
    active: Tensor | None = None,
) -> Tensor:
    """Score every token of the units listed for B sequences that bring one query each.

    query `[B, Hq, D]` and key_cache `[num_pages, page_size, Hkv, D]`, any strides, one floating dtype; plan:
    B sequences of one new token each. Query head h reads KV head h // (Hq // Hkv).

    indices `[B, Hs, M]` int32 names units of `unit` tokens of the sequence, unit 0 its first: ascending,
    distinct, padded with -1 at the end. `unit` divides the page size. Hs = 1 list serves all KV heads,
    Hs = Hkv lists one each.

    Returns fp32 `[B, Hkv, M * unit]`: at m * unit + j the score of token `indices[m] * unit + j`, which is
    the maximum over the query heads of the KV head of scale * q·k, accumulated in fp32;
    `softcap` replaces each head's s by tanh(s / softcap) * softcap before. -inf stands at padding, at tokens
    past the sequence's end, and in all of a row b whose `active[b]` (bool `[B]`) is False.

    Raises ValueError when an argument does not fit the others. That a sequence has the units that its list
    names is the caller's to know: looking would make the host wait for a GPU.
    """
    _check(query, key_cache, plan, indices, unit, softcap, active)
    run = _implementation(dispatch.version(query))
    return run(query, key_cache, plan, indices, unit, scale, softcap, active)


@cache
def _implementation(version: dispatch.Version) -> Callable[..., Tensor]:
    """A CPU has no version of its own: there `shortlist` does it all."""
    module = "gpu" if version == "gpu" else "reference"
    return import_module(f"{__name__}.{module}").listed_scores  # type: ignore[no-any-return]


def _check(
    query: Tensor, key_cache: Tensor, plan: AttentionPlan, indices: Tensor, unit: int,
    softcap: float | None, active: Tensor | None,
) -> None:  # fmt: skip
    if len(key_cache.shape) != 4:
        raise ValueError(
            f"key_cache must be [num_pages, page_size, num_kv_heads, head_dim], not {tuple(key_cache.shape)}"
        )
    checks.listed_units(query, key_cache, plan, indices, unit, per_query_head=False)
    checks.floating_dtype(query, key_cache=key_cache)
    checks.one_device(query, key_cache=key_cache, plan=plan, indices=indices)
    checks.softcap_positive(softcap)
    checks.active_rows(active, query)
