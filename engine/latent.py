"""Multi-head latent attention (MLA): cache the latents, absorb their expansion into query and output.

An MLA layer computes q·(W_k c) = (W_kᵀ q)·c and Σ p (W_v c) = W_v Σ p c, so attention can run on the latent c
itself: one KV head of `rank + rotary` numbers a token. Source: DeepSeek-V2 (arXiv 2405.04434), section 2.1.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True)
class LatentProjection:
    """The two halves of one layer's expansion, as views of its `kv_b_proj` weight.

    Attributes:
        key: [Hq, Dn, rank], latent → unrotated part of the key.
        value: [Hq, Dv, rank], latent → value.
    """

    key: torch.Tensor
    value: torch.Tensor

    @property
    def rank(self) -> int:
        """Numbers in a latent."""
        return self.key.shape[-1]

    @property
    def value_dim(self) -> int:
        """Head size of the expanded value."""
        return self.value.shape[1]

    def absorb(self, query: torch.Tensor) -> torch.Tensor:
        """Query [T, Hq, Dn + rotary] → [T, Hq, rank + rotary], to be multiplied with cached keys."""
        size = self.key.shape[1]
        latent = torch.einsum("thn,hnr->thr", query[..., :size], self.key)
        return torch.cat((latent, query[..., size:]), dim=-1)

    def expand(self, output: torch.Tensor) -> torch.Tensor:
        """Attention over latents [T, Hq, rank] → [T, Hq, Dv]."""
        return torch.einsum("thr,hvr->thv", output, self.value)


def projection_of(module: torch.nn.Module) -> LatentProjection | None:
    """The projection of an MLA layer whose expansion is one plain matrix; None for every other module.

    A layer with a quantised or biased expansion is served as ordinary attention over expanded keys and
    values.
    """
    expansion = getattr(module, "kv_b_proj", None)
    if not hasattr(module, "expand_kv") or not isinstance(expansion, torch.nn.Linear):
        return None
    weight = expansion.weight
    if expansion.bias is not None or not weight.dtype.is_floating_point or weight.dtype.itemsize < 2:
        return None
    key_dim, value_dim = int(module.qk_nope_head_dim), int(module.v_head_dim)
    per_head = weight.detach().view(-1, key_dim + value_dim, weight.shape[-1])
    return LatentProjection(key=per_head[:, :key_dim], value=per_head[:, key_dim:])


def projections(model: torch.nn.Module) -> dict[int, LatentProjection]:
    """`layer_idx` → projection, for every MLA layer of `model`."""
    found = ((module, projection_of(module)) for module in model.modules())
    return {int(module.layer_idx): item for module, item in found if item is not None}  # type: ignore[arg-type]


@contextmanager
def unexpanded(model: torch.nn.Module) -> Iterator[None]:
    """Let the MLA layers of `model` hand latents [1, 1, T, rank] and rotated keys [1, 1, T, rotary] to the
    attention function as key and value."""
    layers = [module for module in model.modules() if projection_of(module) is not None]
    try:
        for module in layers:
            module.expand_kv = _keep  # type: ignore[assignment]
        yield
    finally:
        for module in layers:
            vars(module).pop("expand_kv", None)


def _keep(latent: torch.Tensor, rotated: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return latent, rotated
