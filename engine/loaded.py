"""LoadedModel: a model and every fact of it that the engine needs."""

from dataclasses import dataclass

import torch
from transformers import PreTrainedModel

from headway.engine.layer_spec import LayerSpec
from headway.engine.rope import LengthRope


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A model that the engine can serve.

    Attributes:
        specs: by `layer_idx`.
        eos_token_ids: tokens that end an answer.
        max_context: prompt and answer that the model is made for, in tokens.
        fingerprint: digest of all that changes KV content: weights, configuration, dtype, RoPE settings.
        rope: fixes length-dependent RoPE at admission; `rope.rope_key(length)` joins a prefix-cache key.
    """

    model: PreTrainedModel
    specs: tuple[LayerSpec, ...]
    dtype: torch.dtype
    device: torch.device
    vocab_size: int
    eos_token_ids: tuple[int, ...]
    max_context: int
    fingerprint: bytes
    rope: LengthRope
