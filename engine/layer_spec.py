"""LayerSpec: every fact of one attention layer that the engine needs, read off a probe run."""

from dataclasses import dataclass, field
from typing import Literal

import torch

from headway.engine.rotation import Rotation

RopeStyle = Literal["none", "half", "interleaved", "unknown"]


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerSpec:
    """One attention layer as it really calls the attention function.

    Attributes:
        layer_idx: Hugging Face's layer number.
        num_heads, num_kv_heads: query heads and KV heads that reach the cache (1 KV head for MLA latents).
        key_dim, value_dim: head sizes of the cached key and of what attention returns (MLA: the latent).
        scale: factor on q·k.
        window: keys a query sees, itself included; None: all.
        softcap: c in tanh(s/c)·c; None: off.
        sinks: one logit per query head that joins the softmax without a value; None: none.
        rope: style of the rotation that the model applied; `unknown` where no known style fits.
        rotation: that rotation, where it turns each pair by a constant angle per position; None: there is
            none, its style is unknown, or its angles depend on the sequence's length.
        kv_source: the layer whose keys and values this layer reads (its own index unless KV is shared).
        latent_dim: rank of the MLA latent; None for ordinary attention. The value is then the first
            `latent_dim` numbers of the cached key.
    """

    layer_idx: int
    num_heads: int
    num_kv_heads: int
    key_dim: int
    value_dim: int
    scale: float
    window: int | None = None
    softcap: float | None = None
    sinks: torch.Tensor | None = field(default=None, repr=False)
    rope: RopeStyle = "unknown"
    rotation: Rotation | None = field(default=None, repr=False)
    kv_source: int = -1
    latent_dim: int | None = None

    @property
    def owns_cache(self) -> bool:
        """Whether this layer stores keys and values of its own."""
        return self.kv_source == self.layer_idx

    def bytes_per_token(self, dtype: torch.dtype) -> int:
        """Bytes of KV that one token costs in this layer."""
        if not self.owns_cache:
            return 0
        numbers = self.key_dim if self.latent_dim is not None else self.key_dim + self.value_dim
        return self.num_kv_heads * numbers * dtype.itemsize
