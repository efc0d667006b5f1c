"""Preview: a prompt's two ends through the model as one short text, before any of the prompt is computed.

Flux Attention's router looks at queries of a prompt's first and last tokens, which a prompt that is computed
in chunks, or found in the prefix cache, does not have when it begins. A preview costs the same for every
prompt and depends on its two ends only: not on chunks, neighbours, or what is cached. The ends stand side by
side from position 0 on, as if nothing were between: a text of a length that every model knows, whatever the
prompt's own.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from headway.engine import forward_context
from headway.engine.attention import PagedStep
from headway.engine.cache import KVCache
from headway.engine.errors import ConfigError
from headway.engine.forward_context import LayerCall, rows
from headway.engine.layer_spec import LayerSpec
from headway.engine.loaded import LoadedModel
from headway.engine.lone_step import lone_step

PAGE_SIZE = 64


class Preview:
    """Previews of one model, one at a time, over a few pages of its own; the model must be attached.

    Attributes:
        pool_size: tokens of each end.
        layers: those that are looked at, by layer_idx: all without a window.

    Raises:
        ConfigError: there is no such layer, or one whose queries cannot be had without their rotation.
    """

    def __init__(self, loaded: LoadedModel, pool_size: int) -> None:
        self._loaded = loaded
        self.pool_size = pool_size
        self.layers = _layers(loaded.specs)
        pages = -(-2 * pool_size // PAGE_SIZE)
        self._cache = KVCache(loaded.specs, pages, PAGE_SIZE, loaded.dtype, loaded.device)

    def ends(self, prompt: Sequence[int]) -> tuple[int, ...]:
        """The first and the last tokens of a prompt of at least `2 * pool_size`."""
        return (*prompt[: self.pool_size], *prompt[-self.pool_size :])

    def queries(self, ends: Sequence[int]) -> dict[int, Tensor]:
        """Of each layer, the mean query over both ends and all heads, before its rotation.

        Returns:
            By layer_idx, float32 [key_dim].
        """
        length, device = len(ends), self._loaded.device
        places = torch.arange(length, device=device)
        step = lone_step(self._loaded, self._cache, 0, length, length, {})
        pooling = _Pooling(step, self.layers, places)
        with torch.no_grad(), forward_context.entered(pooling):
            self._loaded.model(
                input_ids=torch.tensor([list(ends)], device=device),
                position_ids=places.unsqueeze(0),
                use_cache=False,
                logits_to_keep=1,
            )
        return pooling.means


def _layers(specs: Sequence[LayerSpec]) -> dict[int, LayerSpec]:
    found = {spec.layer_idx: spec for spec in specs if spec.window is None}
    if not found or any(spec.latent_dim is not None for spec in found.values()):
        raise ConfigError("the model has no layers with KV heads that read the whole context")
    turned = [idx for idx, spec in found.items() if spec.rope != "none" and spec.rotation is None]
    if turned:
        raise ConfigError(
            f"layers {turned} rotate their queries in no known style, or by the sequence's length; a router "
            "looks at queries before their rotation"
        )
    return found


@dataclass(frozen=True, slots=True)
class _Pooling:
    """A forward context that keeps each layer's mean query."""

    step: PagedStep
    layers: Mapping[int, LayerSpec]
    places: Tensor
    means: dict[int, Tensor] = field(default_factory=dict)

    @property
    def rope_groups(self) -> Sequence[tuple[int, Tensor]]:
        return self.step.rope_groups

    def attend(self, call: LayerCall) -> Tensor:
        spec = self.layers.get(call.layer_idx)
        if spec is not None:
            queries = rows(call.query)
            plain = queries if spec.rotation is None else spec.rotation.turn(queries, -self.places)
            self.means[spec.layer_idx] = plain.float().mean((0, 1))
        return self.step.attend(call)
