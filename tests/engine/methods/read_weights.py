"""How often each query of a prompt reads each key, in layers with a softcap or sinks too."""

import torch
from torch import Tensor

from headway.engine.methods.prefill import AnyMethod
from headway.engine.selection.prefill_settings import PrefillSettings

from .layers import spec
from .prefill_layers import prefill


def read_weights(
    method: AnyMethod, query: Tensor, key: Tensor, granules: int = 1, *,
    softcap: float | None = None, sinks: Tensor | None = None,
) -> tuple[Tensor, int]:  # fmt: skip
    """float64 [Hq, N, N]: how often row i reads key j, a sample for what it stands for; and the pairs."""
    names = torch.eye(len(query)).unsqueeze(1).expand(-1, key.shape[1], -1)
    done = prefill(method, query, key, names, granules, softcap=softcap, sinks=sinks)
    weights = done.out.double() * done.lse.double().exp().unsqueeze(-1)
    return weights.transpose(0, 1) / logits(query, key, softcap).exp(), done.pairs


def logits(query: Tensor, key: Tensor, softcap: float | None = None) -> Tensor:
    """float64 [Hq, T, N] of queries [T, Hq, D] and keys [N, Hkv, D]."""
    every = key.double().repeat_interleave(query.shape[1] // key.shape[1], 1)
    scores = torch.einsum("thd,nhd->htn", query.double(), every) * spec().scale
    return scores if softcap is None else softcap * (scores / softcap).tanh()


def dense_rows(length: int, settings: PrefillSettings) -> Tensor:
    """bool [N]: rows of tiles that read everything."""
    starts = torch.arange(length) // settings.tile * settings.tile
    return (starts < settings.dense_below) | (starts + settings.tile > length - settings.dense_tail)
