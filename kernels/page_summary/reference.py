"""The specification of page_summary."""

from torch import Tensor


def summarise_pages(
    key_cache: Tensor, pages: Tensor, filled: Tensor, bounds: Tensor | None, mean: Tensor | None
) -> None:
    dim = key_cache.shape[3]
    for page, count in zip(pages.tolist(), filled.tolist(), strict=True):
        if page < 0:
            continue
        keys = key_cache[page, :count].float()  # [count, Hkv, D]
        if bounds is not None:
            bounds[page, 0, :, :dim] = keys.amax(0)
            bounds[page, 0, :, dim:] = keys.amin(0)
        if mean is not None:
            mean[page, 0] = keys.mean(0)
