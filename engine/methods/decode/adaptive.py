"""adaptive: KV heads read sinks and window only, while two moments of their keys say that this is enough.

In every step and for every query head, the attention to sinks and window is exact, A = Σ exp(s). That to the
N far keys between them is estimated as if their scores were normal, B = N·exp(m + v/2), with m = scale·q·μ
and v = scale²·qᵀΣq from mean μ and covariance Σ of the keys after their rotation. Where A / (A + B) reaches
`threshold`, the head is local. A KV head whose query heads are all local reads sinks and window, any other
one everything.

- Of QAdA (query-adaptive attention) only summaries were read; no code is published. They tell of the test by
  μ and Σ for each query, of sinks and window, and that the moments come from the prompt at hand or once from
  other text. The formula, the agreement of a group's query heads and the defaults are inferences.
- Without a profile the moments are those of the request's own far keys alone: sinks and window are counted
  exactly, and the key of a sink is unlike all others. That, too, is an inference.
- A single key that stands out, a needle, is invisible to two moments: a head that would have found it may be
  taken for local. docs/recipes.md says how often.
- A head's logit without a value counts as near, as sinks do; a soft-cap bounds m + v/2.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from headway.engine.errors import ConfigError
from headway.engine.layer_spec import LayerSpec
from headway.engine.methods.decode import streaming
from headway.engine.methods.decode.base import DecodeMethod
from headway.engine.profile import artefact
from headway.engine.selection.decode_selection import DecodeSelection
from headway.engine.selection.far_moments import Moments, far_moments, moments_bytes, num_far
from headway.engine.selection.layer_view import LayerView
from headway.engine.selection.settings import Count, DecodeSettings, Positive
from headway.kernels.selected_attention import selected_attention


class Settings(DecodeSettings):
    """A higher threshold lets fewer heads be local."""

    method: Literal["adaptive"] = "adaptive"
    sink_size: Count = Field(16, description="First tokens, always read.")
    window_size: Positive = Field(1024, description="Latest tokens, always read.")
    threshold: float = Field(
        0.6,
        ge=0,
        le=2,
        description="Share of a head's attention that sinks and window must have for it to read no more; "
        "0: always, above 1: never.",
    )
    profile: str | None = Field(
        None, description="Profile of kind `moments`; default: the moments of the request's own keys."
    )


class Method(DecodeMethod[Settings]):
    """One list for all heads; those that are not local read everything."""

    routes_heads: ClassVar[bool] = True

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        self._near = streaming.Method(
            streaming.Settings(sink_size=settings.sink_size, window_size=settings.window_size)
        )

    def profiles(self) -> Mapping[str, Path]:
        """The moments, if a profile holds them."""
        path = self.settings.profile
        return {} if path is None else {"profile": Path(path)}

    def check(self, specs: Sequence[LayerSpec], page_size: int) -> None:  # noqa: ARG002
        """The profile, if there is one, must hold the moments of every layer that chooses."""
        path = self.settings.profile
        if path is None:
            return
        tensors = _read(path, torch.device("cpu"))
        for spec in self.choosing(specs):
            shape = [spec.num_kv_heads, spec.key_dim]
            for name, wanted in (("mean", shape), ("covariance", [*shape, spec.key_dim])):
                found = tensors.get(f"{name}.{spec.kv_source}")
                if found is None or list(found.shape) != wanted:
                    raise ConfigError(
                        f"profile: {name}.{spec.kv_source} of {path} must be {wanted}, "
                        f"not {'missing' if found is None else list(found.shape)}"
                    )

    def layer_bytes(self, spec: LayerSpec, context: int) -> int:  # noqa: ARG002
        """The moments of the far keys, unless they are those of a profile."""
        return moments_bytes(spec) if self.settings.profile is None else 0

    def select(self, query: Tensor, layer: LayerView) -> DecodeSelection:
        """Tokens, one list; the KV heads that are not local are dense."""
        spec, settings = layer.spec, self.settings
        near = self._near.select(query, layer)
        _, log_near = selected_attention(
            query, layer.key_cache, layer.value_cache, layer.plan, near.indices, 1,
            scale=spec.scale, softcap=spec.softcap, sinks=spec.sinks,
        )  # fmt: skip
        count = num_far(layer, settings.sink_size, settings.window_size)
        log_far = count.log().unsqueeze(1) + mean_log_mass(query, self._moments(layer), spec)
        share = torch.sigmoid(log_near - log_far).view(len(query), spec.num_kv_heads, -1)
        # Written so that NaN reads everything.
        return replace(near, dense=~(share >= settings.threshold).all(2))

    def _moments(self, layer: LayerView) -> Moments:
        settings, source = self.settings, layer.spec.kv_source
        if settings.profile is None:
            return far_moments(layer, settings.sink_size, settings.window_size)
        tensors = _read(settings.profile, layer.key_cache.device)
        return tensors[f"mean.{source}"], tensors[f"covariance.{source}"]


def mean_log_mass(query: Tensor, moments: Moments, spec: LayerSpec) -> Tensor:
    """Logarithm of the mean of exp(score) of normal keys, fp32 [B, Hq], for queries [B, Hq, D].

    Moments without their first dimension hold for all sequences.
    """
    mean, covariance = moments
    grouped = query.float().view(len(query), spec.num_kv_heads, -1, spec.key_dim) * spec.scale
    expected = (grouped * mean.unsqueeze(-2)).sum(-1)
    variance = (grouped @ covariance * grouped).sum(-1)
    return (expected + variance / 2).flatten(1).clamp_max(spec.softcap or torch.inf)


@lru_cache(maxsize=4)
def _read(path: str, device: torch.device) -> Mapping[str, Tensor]:
    """A profile's tensors, read once in a process: requests with thresholds of their own share them."""
    try:
        profile = artefact.load(Path(path))
    except ConfigError as error:
        raise ConfigError(f"profile: {error}") from error
    if profile.facts.kind != "moments":
        raise ConfigError(f"profile: {path} is a profile of kind {profile.facts.kind}; it must be moments")
    return {name: tensor.to(device) for name, tensor in profile.tensors.items()}
