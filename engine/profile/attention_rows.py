"""What a few query rows attend to, written out: the attention weights that no kernel ever keeps."""

import torch
from torch import Tensor

from headway.engine.layer_spec import LayerSpec


def row_logits(spec: LayerSpec, query: Tensor, keys: Tensor) -> Tensor:
    """Scores of the last rows before the softmax: float32 [R, Hq, n], -inf where a row may not look.

    Args:
        query: [R, Hq, Dk], the last R tokens.
        keys: [n, Hkv, Dk], all n tokens.
    """
    rows, length = len(query), len(keys)
    groups = query.float().view(rows, spec.num_kv_heads, -1, spec.key_dim)
    logits = torch.einsum("rhgd,nhd->rhgn", groups, keys.float()).flatten(1, 2) * spec.scale
    if spec.softcap is not None:
        logits = (logits / spec.softcap).tanh() * spec.softcap
    own = torch.arange(length - rows, length, device=keys.device)[:, None]
    place = torch.arange(length, device=keys.device)
    hidden = place > own
    if spec.window is not None:
        hidden |= place <= own - spec.window
    return logits.masked_fill(hidden[:, None], -torch.inf)


def row_weights(spec: LayerSpec, query: Tensor, keys: Tensor) -> Tensor:
    """Attention of the last rows: float32 [R, Hq, n]; a sink logit takes its part of a row."""
    logits = row_logits(spec, query, keys)
    if spec.sinks is None:
        return logits.softmax(-1)
    sinks = spec.sinks.float().view(1, -1, 1).expand(len(query), -1, 1)
    return torch.cat((logits, sinks), -1).softmax(-1)[..., :-1]
