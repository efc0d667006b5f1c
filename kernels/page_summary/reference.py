"""The specification of page_summary."""

import torch
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
            bounds[page, 0, :, :dim] = _outward(keys.amax(0), bounds.dtype, torch.inf)
            bounds[page, 0, :, dim:] = _outward(keys.amin(0), bounds.dtype, -torch.inf)
        if mean is not None:
            mean[page, 0] = keys.mean(0)


def _outward(numbers: Tensor, dtype: torch.dtype, end: float) -> Tensor:
    """The nearest numbers of `dtype` between these and `end`."""
    rounded = numbers.to(dtype)
    inward = rounded < numbers if end > 0 else rounded > numbers
    return torch.where(inward, torch.nextafter(rounded, rounded.new_tensor(end)), rounded)
