"""shortlist as a chain of other ops, each of which its device's version serves; no look from the host."""

import torch
from torch import Tensor

from headway.kernels.listed_scores import listed_scores
from headway.kernels.paged_attention.plan import AttentionPlan
from headway.kernels.shortlist import Shortlisted
from headway.kernels.top_k import top_k


def shortlist(
    query: Tensor, unit_scores: Tensor, key_cache: Tensor, plan: AttentionPlan, unit: int, units: int,
    tokens: int, unit_limits: Tensor | None, token_limits: Tensor | None, sink_size: int, window_size: int,
    scale: float, softcap: float | None, active: Tensor | None,
) -> Shortlisted:  # fmt: skip
    lens = plan.kv_lens.view(-1, 1, 1)
    first = torch.arange(unit_scores.shape[2], device=query.device) * unit
    forced = ((first < sink_size) | (first + unit > lens - window_size)) & ~unit_scores.isneginf()
    listed = _top(unit_scores.masked_fill_(forced, torch.inf), units, unit_limits)
    scores = listed_scores(query, key_cache, plan, listed, unit, scale=scale, softcap=softcap, active=active)
    inside = torch.arange(unit, dtype=torch.int32, device=query.device)
    token = (listed.unsqueeze(-1) * unit + inside).flatten(2)
    forced = ((token < sink_size) | (token >= lens - window_size)) & ~scores.isneginf()
    places = _top(scores.masked_fill(forced, torch.inf), tokens, token_limits)
    best = token.gather(-1, places.clamp_min(0).long())
    return Shortlisted(torch.where(places >= 0, best, -1), places, scores)


def _top(scores: Tensor, count: int, limits: Tensor | None) -> Tensor:
    return top_k(scores, count, None if limits is None else limits.unsqueeze(1).expand(scores.shape[:2]))
