"""Moments of the keys that a model writes while it reads texts."""

from collections.abc import Iterable, Iterator

import torch
from pydantic import Field
from torch import Tensor

from headway.engine.config_section import Positive, Section
from headway.engine.errors import ConfigError
from headway.engine.key_moments import KeyMoments
from headway.engine.layer_spec import LayerSpec
from headway.engine.loaded import LoadedModel
from headway.engine.profile.haystacks import maker
from headway.engine.profile.progress import Progress, tracked
from headway.engine.profile.watched_run import WatchedRun
from headway.engine.sidecars import carries


class TextSettings(Section):
    """Longer texts show directions that turn slowly; more of them, more of the keys there are."""

    length: Positive = Field(8192, description="Tokens of a text.")
    texts: Positive = Field(3, description="How many are read.")
    seed: int = Field(0, description="Seed of the texts.")


def haystacks(loaded: LoadedModel, settings: TextSettings) -> Iterator[list[int]]:
    """Haystacks of at most the wanted length."""
    make = maker(loaded)
    for index in range(settings.texts):
        yield make(settings.length, index, 1, settings.seed).ids


def random_tokens(loaded: LoadedModel, settings: TextSettings) -> Iterator[list[int]]:
    """Tokens of the whole vocabulary, all equally likely."""
    generator = torch.Generator().manual_seed(settings.seed)
    for _ in range(settings.texts):
        yield torch.randint(loaded.vocab_size, (settings.length,), generator=generator).tolist()


def key_moments(
    loaded: LoadedModel, texts: Iterable[list[int]], length: int, progress: Progress
) -> dict[int, KeyMoments]:
    """Moments of the rotated keys of every layer that reads all of its own, by layer_idx.

    Args:
        length: no text is longer.

    Raises:
        ConfigError: texts of that length do not fit the model.
    """
    if length > loaded.max_context:
        raise ConfigError(f"length: must be at most the model's {loaded.max_context}, not {length}")
    moments = {
        spec.layer_idx: KeyMoments(spec.num_kv_heads, spec.key_dim, loaded.device)
        for spec in loaded.specs
        if carries(spec)
    }

    def watch(spec: LayerSpec, queries: Tensor, keys: Tensor) -> None:
        if spec.layer_idx in moments:
            moments[spec.layer_idx].add(keys[-len(queries) :])

    with WatchedRun(loaded, length) as run:
        for ids in tracked(progress, "keys", texts):
            run.read(ids, watch=watch)
    return moments


def tokens_of(moments: dict[int, KeyMoments]) -> int:
    """Tokens that were read."""
    return max((each.count for each in moments.values()), default=0)
