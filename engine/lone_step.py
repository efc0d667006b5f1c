"""lone_step: one sequence by itself, over the first pages of a cache that nobody else uses."""

from collections.abc import Mapping

import torch

from headway.engine.attention import PagedStep
from headway.engine.cache import KVCache
from headway.engine.latent import LatentProjection
from headway.engine.loaded import LoadedModel
from headway.engine.selection.plans import Plans
from headway.kernels.paged_attention import plan


def lone_step(
    loaded: LoadedModel,
    cache: KVCache,
    start: int,
    end: int,
    longest: int,
    latents: Mapping[int, LatentProjection],
) -> PagedStep:
    """The forward context of its tokens [start, end); those before lie in the cache already.

    Args:
        longest: length that length-dependent RoPE is fixed at.
    """
    size, device = cache.page_size, loaded.device
    groups = loaded.rope.groups([longest], [range(end - start)])
    return PagedStep(
        specs=loaded.specs,
        cache=cache,
        latents=latents,
        plans=Plans(plan([end - start], [end], [range(-(-end // size))], size, device)),
        slot_mapping=torch.arange(start, end, device=device),
        rope_groups=[(length, torch.tensor(rows, device=device)) for length, rows in groups],
    )
