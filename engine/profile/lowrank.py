"""lowrank: the directions in which the keys of each KV head vary most, after their rotation (Loki,
arXiv 2406.02542), for `basis` of the decode method loki.

Loki calibrates on texts of 4,096 tokens with all keys in memory; here the covariance is kept while the texts
pass, so that they may be as long as the context. By default the texts are random tokens: in a real text a
few frequent tokens make most of the variance, and the directions that tell the rare ones apart, which are
what one searches for, come late. (Measured on needle only.)

Tensors: `layers.N` [KV heads, D, D], orthonormal columns, the widest first, and `variances.N` [KV heads, D],
those of the columns, float32, of every layer N that reads all of its own keys. Findings: `tokens`, how many
keys a head was measured on; `directions`, per layer and KV head, how many it takes to explain each of
`SHARES` of the variance.
"""

from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from headway.engine.key_moments import principal
from headway.engine.loaded import LoadedModel
from headway.engine.profile.artefact import Artefact, made
from headway.engine.profile.keys import TextSettings, haystacks, key_moments, random_tokens, tokens_of
from headway.engine.profile.pictures import Figure, curves
from headway.engine.profile.progress import Progress

SHARES = (0.5, 0.8, 0.9, 0.95, 0.99)


class Settings(TextSettings):
    """What the directions are taken from."""

    source: Literal["tokens", "haystacks"] = Field(
        "tokens", description="`tokens`: random ones, all equally likely; `haystacks`: texts with facts."
    )


def run(loaded: LoadedModel, settings: Settings, progress: Progress) -> Artefact:
    """Read texts, and find the principal directions of their keys."""
    texts = random_tokens if settings.source == "tokens" else haystacks
    moments = key_moments(loaded, texts(loaded, settings), settings.length, progress)
    tensors: dict[str, Tensor] = {}
    needed: dict[str, Any] = {}
    for layer, each in moments.items():
        variances, directions = principal(each.covariance)
        tensors |= {f"layers.{layer}": directions.float(), f"variances.{layer}": variances.float()}
        needed[str(layer)] = {str(share): directions_for(variances, share) for share in SHARES}
    return made(
        loaded, "lowrank", tensors, settings=settings, seeds=[settings.seed], length=settings.length,
        findings={"tokens": tokens_of(moments), "directions": needed},
    )  # fmt: skip


def picture(artefact: Artefact) -> Figure:
    """Explained variance over the number of directions, a line for each layer, the mean of its heads."""
    lines = {
        f"layer {layer}": explained(artefact.tensors[f"variances.{layer}"].double()).mean(0).tolist()
        for layer in artefact.facts.findings["directions"]
    }
    return curves(lines, "explained variance of the keys", "directions", "share", low=0)


def explained(variances: Tensor) -> Tensor:
    """Share of the variance that the first directions explain, cumulated; [..., D] → [..., D]."""
    return variances.cumsum(-1) / variances.sum(-1, keepdim=True)


def directions_for(variances: Tensor, share: float) -> list[int]:
    """Per KV head, the fewest first directions that explain so much; variances [KV heads, D]."""
    # The last sum is one but for rounding.
    short = explained(variances) < min(share, 1 - torch.finfo(variances.dtype).eps * variances.shape[-1])
    return (short.sum(-1) + 1).tolist()
