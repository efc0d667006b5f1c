"""Log-probabilities of the model's own distribution, before anything was done to its logits."""

import torch
from torch import Tensor

from headway.engine.draw import ranked
from headway.engine.messages import Logprob


def logprobs(logits: Tensor, token_ids: Tensor, top: list[int]) -> list[Logprob]:
    """The log-probability of each row's token and of its `top[row]` best alternatives.

    A token's number is one and the same whether it is reported as the token or as an alternative.

    Args:
        logits: float32 [R, V].
        token_ids: int64 [R].
        top: R numbers of alternatives, each at most V.
    """
    width = max(top, default=0)
    columns = token_ids[:, None]
    if width:
        columns = torch.cat([columns, ranked(logits, width)], dim=-1)
    best = logits.max(-1, keepdim=True).values
    log_total = (logits - best).exp_().sum(-1, keepdim=True).log_()
    values = (logits.gather(-1, columns) - best - log_total).tolist()
    ids = columns.tolist()
    return [
        Logprob(values[row][0], list(zip(ids[row][1 : count + 1], values[row][1 : count + 1], strict=True)))
        for row, count in enumerate(top)
    ]
