"""Which library attends the long dense chunks of a GPU: the first that a trial run finds right."""

import logging
from functools import cache
from importlib import import_module

import torch
from torch import Tensor

from headway.kernels.paged_attention import reference
from headway.kernels.paged_attention.gpu_dense import BUCKET, Backend, attend_chunk
from headway.kernels.paged_attention.plan import plan

logger = logging.getLogger(__name__)


def cudnn(query: Tensor, key: Tensor, value: Tensor, scale: float, causal: bool) -> tuple[Tensor, Tensor]:
    """FA3's speed on Hopper, with nothing to install."""
    op = torch.ops.aten._scaled_dot_product_cudnn_attention.default
    out, lse = op(query, key, value, None, True, 0.0, causal, scale=scale)[:2]
    return out, lse.view(out.shape[:3])


def flash_attn(
    query: Tensor, key: Tensor, value: Tensor, scale: float, causal: bool
) -> tuple[Tensor, Tensor]:
    """The flash-attn package, where it is installed."""
    attend = import_module("flash_attn").flash_attn_func
    heads_last = (x.transpose(1, 2) for x in (query, key, value))
    out, lse, _ = attend(*heads_last, softmax_scale=scale, causal=causal, return_attn_probs=True)
    return out.transpose(1, 2), lse


def torch_flash(
    query: Tensor, key: Tensor, value: Tensor, scale: float, causal: bool
) -> tuple[Tensor, Tensor]:
    """FlashAttention-2 as PyTorch ships it."""
    op = torch.ops.aten._scaled_dot_product_flash_attention.default
    out, lse = op(query, key, value, 0.0, causal, scale=scale)[:2]
    return out, lse


def expanding(backend: Backend) -> Backend:
    """`backend` with one key and value for every query head, where it does not group them itself."""

    def attend(
        query: Tensor, key: Tensor, value: Tensor, scale: float, causal: bool
    ) -> tuple[Tensor, Tensor]:
        group_size = query.shape[1] // key.shape[1]
        key, value = (x.repeat_interleave(group_size, 1) for x in (key, value))
        return backend(query, key, value, scale, causal)

    return attend


BACKENDS = (cudnn, expanding(cudnn), flash_attn, torch_flash, expanding(torch_flash))


@cache
def chosen(
    device: torch.device, dtype: torch.dtype, head_dim: int, backends: tuple[Backend, ...] = BACKENDS
) -> Backend | None:
    """The first of `backends` that gives what the reference gives; None: leave it to Triton."""
    for backend in backends:
        try:
            if _is_right(backend, device, dtype, head_dim):
                return backend
            logger.warning("%s is wrong for %s heads of %d", backend, dtype, head_dim)
        except (RuntimeError, ImportError, TypeError, ValueError) as error:
            logger.debug("%s does not serve %s heads of %d: %s", backend, dtype, head_dim, error)
    return None


def _is_right(backend: Backend, device: torch.device, dtype: torch.dtype, head_dim: int) -> bool:
    """Whether it agrees on a chunk that begins and ends within a bucket, behind keys of its own, grouped."""
    tokens, kv_len, page_size, heads = BUCKET, 2 * BUCKET + 100, 16, 4
    num_pages = -(-kv_len // page_size)
    random = torch.Generator(device).manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=random, device=device).to(dtype)

    query = draw(tokens, heads, head_dim)
    key_cache, value_cache = (draw(num_pages, page_size, heads // 2, head_dim) for _ in range(2))
    batch = plan([tokens], [kv_len], [range(num_pages - 1, -1, -1)], page_size, device)
    scale = head_dim**-0.5
    out, lse = torch.empty_like(query), torch.empty(tokens, heads, device=device)
    attend_chunk(backend, query, key_cache, value_cache, batch, 0, scale, None, out, lse)
    expected, expected_lse = reference.paged_attention(
        query, key_cache, value_cache, batch, scale, None, None, None, torch.empty_like(query)
    )
    return torch.allclose(out, expected, atol=1e-2, rtol=2e-2) and torch.allclose(
        lse, expected_lse, atol=1e-2
    )
