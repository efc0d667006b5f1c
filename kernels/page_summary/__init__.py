"""page_summary: what stands for a page's keys when pages are scored."""

from collections.abc import Callable
from functools import cache
from importlib import import_module

import torch
from torch import Tensor

from headway.kernels import dispatch

__all__ = ["summarise_pages"]


def summarise_pages(
    key_cache: Tensor,
    pages: Tensor,
    filled: Tensor,
    *,
    bounds: Tensor | None = None,
    mean: Tensor | None = None,
) -> None:
    """Summarise P pages from the keys that they hold, in place.

    key_cache `[num_pages, page_size, Hkv, D]`, any strides; pages int64 `[P]`, physical and distinct, a
    negative one is skipped; filled int64 `[P]`, the tokens present in each, 1 to page_size. Written, each
    optional and of the keys' dtype: bounds `[num_pages, 1, Hkv, 2D]`, channel by channel the maximum, then
    the minimum (the metadata of Quest, arXiv 2406.10774, which takes them in the other order); mean
    `[num_pages, 1, Hkv, D]`, accumulated in fp32. Bounds of float32 keys may be bfloat16: they are rounded
    outward, and so stay bounds. Nothing is carried over from an earlier summary.

    Raises ValueError when shapes, dtypes or devices do not fit together or there is nothing to write. On a
    CPU a page beyond the cache raises IndexError and a count out of range ValueError; on a GPU neither is
    checked, looking would make the host wait.
    """
    if key_cache.ndim != 4:
        raise ValueError(f"key_cache must be [num_pages, page_size, num_kv_heads, D], not {key_cache.ndim}-D")
    if bounds is None and mean is None:
        raise ValueError("bounds and mean are both None: nothing to write")
    for name, numbers in (("pages", pages), ("filled", filled)):
        if numbers.dtype != torch.int64 or numbers.ndim != 1 or numbers.device != key_cache.device:
            got = f"{numbers.dtype} {tuple(numbers.shape)} on {numbers.device}"
            raise ValueError(f"{name} must be int64 [P] on {key_cache.device}, not {got}")
    if pages.shape != filled.shape:
        raise ValueError(f"pages and filled must be of one length, not {len(pages)} and {len(filled)}")
    narrower = key_cache.dtype == torch.float32 and bounds is not None and bounds.dtype == torch.bfloat16
    _check("bounds", bounds, key_cache, 2, torch.bfloat16 if narrower else key_cache.dtype)
    _check("mean", mean, key_cache, 1, key_cache.dtype)
    run = _implementation(dispatch.version(key_cache))
    run(key_cache, pages, filled, bounds, mean)


@cache
def _implementation(version: dispatch.Version) -> Callable[..., None]:
    """Imported on first use: Triton may not be installed."""
    return import_module(f"{__name__}.{version}").summarise_pages  # type: ignore[no-any-return]


def _check(name: str, summary: Tensor | None, key_cache: Tensor, rows: int, dtype: torch.dtype) -> None:
    if summary is None:
        return
    num_pages, _, num_kv_heads, dim = key_cache.shape
    shape = (num_pages, 1, num_kv_heads, rows * dim)
    if summary.shape != shape or summary.dtype != dtype or summary.device != key_cache.device:
        raise ValueError(
            f"{name} must be {shape} {dtype} on {key_cache.device}, "
            f"not {tuple(summary.shape)} {summary.dtype} on {summary.device}"
        )
