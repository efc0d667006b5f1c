"""From a profile's scores of heads to the heads that stream."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from headway.engine.errors import ConfigError
from headway.engine.layer_spec import LayerSpec
from headway.engine.loaded import LoadedModel
from headway.engine.profile import artefact
from headway.engine.recipe import HeadsConfig
from headway.engine.selection.head_route import HeadRoutes


def head_routes(config: HeadsConfig | None, loaded: LoadedModel) -> HeadRoutes | None:
    """The routes that a recipe asks for; None: no head streams.

    Raises:
        ConfigError: the profile cannot be read, is of another model, or does not score its heads.
    """
    if config is None:
        return None
    field = "recipe.heads.profile"
    try:
        profile = artefact.load(Path(config.profile))
        profile.check(loaded)
    except ConfigError as error:
        raise ConfigError(f"{field}: {error}") from error
    scores = profile.tensors.get("kv_heads")
    if scores is None:
        raise ConfigError(
            f"{field}: a {profile.facts.kind} profile does not score heads; duo, retrieval and layers do"
        )
    try:
        streaming = streaming_heads(scores, loaded.specs, config.sparsity)
    except ValueError as error:
        raise ConfigError(f"{field}: {config.profile}: {error}") from error
    routes = HeadRoutes(
        loaded.specs,
        streaming,
        config.sink_size,
        config.window_size,
        question_reads_all=config.question == "all",
    )
    return routes or None


def streaming_heads(
    scores: Tensor, specs: Sequence[LayerSpec], sparsity: float
) -> dict[int, tuple[int, ...]]:
    """The share `sparsity` of all KV heads that has the lowest scores, by layer_idx.

    Layers with a sliding window are left out: they read their window, whoever scores them. Among equal
    scores, always the same heads are drawn, without regard to their place.

    Args:
        scores: [layers, KV heads], at least as wide as the widest layer.

    Raises:
        ValueError: a head has no score.
    """
    heads = [
        (spec.layer_idx, head) for spec in specs if spec.window is None for head in range(spec.num_kv_heads)
    ]
    for layer, head in heads:
        if not (layer < len(scores) and head < scores.shape[1] and scores[layer, head].isfinite()):
            raise ValueError(f"KV head {head} of layer {layer} has no score")
    drawn = torch.randperm(len(heads), generator=torch.Generator().manual_seed(0)).tolist()
    ranked = sorted((float(scores[heads[place]]), rank) for rank, place in enumerate(drawn))
    chosen = [heads[drawn[rank]] for _, rank in ranked[: int(sparsity * len(heads) + 0.5)]]
    return {layer: tuple(sorted(head for other, head in chosen if other == layer)) for layer, _ in chosen}
