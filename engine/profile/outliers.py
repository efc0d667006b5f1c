"""outliers: channels of the cached keys that dwarf the others of their head (massive values in keys,
arXiv 2502.01563). A quantised cache must keep them apart, and low-rank scores must count them first.

Keys are taken as they are cached, after their rotation. Tensors: `key_rms` [layers, KV heads, channels], the
root mean square over all tokens; `channels` int32 [layers, KV heads, most], the outliers of each head, the
largest first, then -1.
"""

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from headway.engine.config_section import Positive, Section
from headway.engine.layer_spec import LayerSpec
from headway.engine.loaded import LoadedModel
from headway.engine.profile.artefact import Artefact, made
from headway.engine.profile.haystacks import maker
from headway.engine.profile.head_scores import table
from headway.engine.profile.pictures import Figure, heat_map
from headway.engine.profile.progress import Progress, tracked
from headway.engine.profile.watched_run import WatchedRun


class Settings(Section):
    """Which texts are read, and what counts as an outlier."""

    length: Annotated[int, Field(ge=256)] = Field(4096, description="Tokens of a text.")
    texts: Positive = Field(6, description="How many are read.")
    seed: int = Field(0, description="Seed of the texts.")
    ratio: Annotated[float, Field(gt=1)] = Field(
        4.0, description="A channel is an outlier from this multiple of its head's median one."
    )
    most: Positive = Field(4, description="Outliers a head, at most.")


def run(loaded: LoadedModel, settings: Settings, progress: Progress) -> Artefact:
    """Read the texts, adding up the squares of the keys.

    Raises:
        ConfigError: no texts can be made for this model.
    """
    make = maker(loaded)
    squares: dict[int, Tensor] = {}
    tokens = 0

    def watch(spec: LayerSpec, query: Tensor, keys: Tensor) -> None:
        new = keys[len(keys) - len(query) :].double().square().sum(0).cpu()
        squares[spec.layer_idx] = squares.get(spec.layer_idx, 0.0) + new

    with WatchedRun(loaded, settings.length) as watched:
        for index in tracked(progress, "texts", range(settings.texts)):
            ids = make(settings.length, index, 1, settings.seed).ids
            watched.read(ids, watch)
            tokens += len(ids)
    key_rms = table([(squares[spec.layer_idx] / tokens).sqrt() for spec in loaded.specs])
    channels = outlying(key_rms, settings.ratio, settings.most)
    return made(
        loaded,
        "outliers",
        {"key_rms": key_rms, "channels": channels},
        settings=settings,
        seeds=[settings.seed],
        length=settings.length,
        findings={
            "outliers": int((channels >= 0).sum()),
            "heads_with_outliers": int((channels >= 0).any(-1).sum()),
            "largest_ratio": round(float(ratios(key_rms).nan_to_num().max()), 3),
        },
    )


def ratios(key_rms: Tensor) -> Tensor:
    """Each channel over the median one of its head: like `key_rms`."""
    return key_rms / key_rms.nanmedian(-1, keepdim=True).values


def outlying(key_rms: Tensor, ratio: float, most: int) -> Tensor:
    """The channels of each head from `ratio` medians on: int32 [layers, KV heads, most], -1 for none."""
    found, channels = ratios(key_rms).nan_to_num().sort(dim=-1, descending=True, stable=True)
    chosen = torch.where(found >= ratio, channels, -1)[..., :most].int()
    return torch.nn.functional.pad(chosen, (0, most - chosen.shape[-1]), value=-1)


def picture(artefact: Artefact) -> Figure:
    """Heat map of each head's largest channel."""
    largest = ratios(artefact.tensors["key_rms"]).nan_to_num(-torch.inf).amax(-1)
    largest = largest.masked_fill(largest.isinf(), torch.nan)
    return heat_map(largest, "largest key channel over the median one", "KV head", "layer", low=1)
