"""store_kv: write new keys and values into the paged cache."""

from collections.abc import Callable
from functools import cache
from importlib import import_module

import torch
from torch import Tensor

from headway.kernels import dispatch

__all__ = ["store_kv"]


def store_kv(
    key: Tensor, value: Tensor | None, key_cache: Tensor, value_cache: Tensor | None, slot_mapping: Tensor
) -> None:
    """Scatter T tokens into their slots, in place.

    key `[T, Hkv, Dk]` and value `[T, Hkv, Dv]`, any strides; key_cache and value_cache `[num_pages,
    page_size, Hkv, D]`, any strides, same dtype and device as `key`; slot_mapping int64 `[T]` with slot =
    page * page_size + offset. A negative slot is skipped; two tokens with one slot leave either of them.
    `value` and `value_cache` are None together: a key-only cache (MLA latents).

    Raises ValueError when shapes, dtypes or devices do not fit together. A slot beyond the cache raises
    IndexError on a CPU and is unchecked on a GPU, where looking would make the host wait.
    """
    if (value is None) != (value_cache is None):
        raise ValueError("value and value_cache must both be given or both be None")
    if slot_mapping.dtype != torch.int64 or slot_mapping.ndim != 1:
        got = f"{slot_mapping.dtype} {tuple(slot_mapping.shape)}"
        raise ValueError(f"slot_mapping must be int64 [T], not {got}")
    if slot_mapping.device != key.device:
        raise ValueError(f"slot_mapping is on {slot_mapping.device}, key on {key.device}")
    _check("key", key, key_cache, slot_mapping.shape[0])
    if value is not None and value_cache is not None:
        _check("value", value, value_cache, slot_mapping.shape[0])
        if value_cache.shape[:3] != key_cache.shape[:3] or value_cache.device != key_cache.device:
            raise ValueError(
                f"value_cache {tuple(value_cache.shape)} on {value_cache.device} does not fit key_cache "
                f"{tuple(key_cache.shape)} on {key_cache.device}"
            )
    run = _implementation(dispatch.version(key))
    run(key, value, key_cache, value_cache, slot_mapping)


@cache
def _implementation(version: dispatch.Version) -> Callable[..., None]:
    """Imported on first use: Triton may not be installed."""
    return import_module(f"{__name__}.{version}").store_kv  # type: ignore[no-any-return]


def _check(name: str, new: Tensor, cache: Tensor, tokens: int) -> None:
    if cache.ndim != 4:
        shape = "[num_pages, page_size, num_kv_heads, head_dim]"
        raise ValueError(f"{name}_cache must be {shape}, not {cache.ndim}-D")
    if new.shape != (tokens, *cache.shape[2:]):
        raise ValueError(f"{name} must be {(tokens, *cache.shape[2:])}, not {tuple(new.shape)}")
    if new.dtype != cache.dtype or new.device != cache.device:
        raise ValueError(
            f"{name} is {new.dtype} on {new.device}, {name}_cache {cache.dtype} on {cache.device}"
        )
