"""The load-time probe: run the model once and read off every layer what it asks of attention.

The calls are the only source of truth: configuration and module attributes are known to disagree with them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import PreTrainedModel

from headway.engine import forward_context, rope_style
from headway.engine.errors import ModelRefused
from headway.engine.forward_context import LayerCall
from headway.engine.latent import LatentProjection, projections
from headway.engine.layer_spec import LayerSpec, RopeStyle
from headway.engine.masks import MaskProbe
from headway.engine.patch import attached
from headway.engine.rotation import Rotation

PROBE_TOKENS = 9
UNDERSTOOD_TENSORS = {"s_aux", "position_ids"}


@dataclass(slots=True)
class _Recorder:
    """A forward context that keeps every call and returns zeros, so that hidden states do not depend on the
    rotation."""

    latents: Mapping[int, LatentProjection]
    masks: MaskProbe = field(default_factory=MaskProbe)
    calls: dict[int, LayerCall] = field(default_factory=dict)
    rope_groups: Sequence[tuple[int, torch.Tensor]] = ()

    def attend(self, call: LayerCall) -> torch.Tensor:
        layer_idx = getattr(call.module, "layer_idx", None)
        if not isinstance(layer_idx, int):
            raise ModelRefused(f"an attention layer ({type(call.module).__name__}) has no number")
        if layer_idx in self.calls:
            raise ModelRefused(f"layer {layer_idx} attends twice in one forward pass")
        self.calls[layer_idx] = call
        latent = self.latents.get(layer_idx)
        value_dim = call.value.shape[-1] if latent is None else latent.value_dim
        _, num_heads, tokens, _ = call.query.shape
        return call.query.new_zeros(1, tokens, num_heads, value_dim)


def probe(model: PreTrainedModel, longest: int) -> tuple[LayerSpec, ...]:
    """Derive the spec of every attention layer.

    Args:
        longest: tokens of the longest sequence to be served; windows are looked for up to this length.

    Raises:
        ModelRefused: a layer asks for something that the engine cannot do, with the reason.
    """
    rotated, rope_outputs = _record(model, identity=False)
    plain, _ = _record(model, identity=True)
    layers = range(model.config.get_text_config(decoder=True).num_hidden_layers)
    if sorted(rotated.calls) != list(layers):
        raise ModelRefused(
            f"layers {sorted(set(layers) - set(rotated.calls))} of {len(layers)} do not attend through "
            "AttentionInterface (recurrent, convolutional and linear-attention layers are not supported)"
        )
    # Layers that share keys and values pass the same tensor.
    owners: dict[int, int] = {}
    frequencies = rope_style.constant_frequencies(model)
    specs = []
    for layer_idx in layers:
        call = rotated.calls[layer_idx]
        _check(layer_idx, call)
        source = owners.setdefault(call.key.data_ptr(), layer_idx)
        rope = rope_style.classify(plain.calls[layer_idx].query, call.query, rope_outputs, frequencies)
        window = rotated.masks.window(layer_idx, call.mask, longest)
        specs.append(_spec(layer_idx, source, call, window, rope, rotated.latents.get(layer_idx)))
    return tuple(specs)


def _record(model: PreTrainedModel, *, identity: bool) -> tuple[_Recorder, list[Any]]:
    recorder = _Recorder(projections(model))
    device = model.device
    with (
        torch.inference_mode(),
        attached(model, mask=recorder.masks.build),
        rope_style.observed(model, identity=identity) as rope_outputs,
        forward_context.entered(recorder),
    ):
        try:
            output = model(
                input_ids=torch.arange(PROBE_TOKENS, device=device).unsqueeze(0),
                position_ids=torch.arange(PROBE_TOKENS, device=device).unsqueeze(0),
                use_cache=False,
                logits_to_keep=torch.tensor([PROBE_TOKENS - 1], device=device),
            )
        except ModelRefused:
            raise
        except Exception as error:
            raise ModelRefused(
                f"{type(model).__name__} does not run without a Hugging Face cache and mask: "
                f"{type(error).__name__}: {error}"
            ) from error
    if output.logits.shape[:2] != (1, 1):
        raise ModelRefused(
            f"{type(model).__name__} computes logits for every token (it has no logits_to_keep)"
        )
    return recorder, rope_outputs


def _check(layer_idx: int, call: LayerCall) -> None:
    unknown = [
        name
        for name, value in call.options.items()
        if isinstance(value, torch.Tensor) and name not in UNDERSTOOD_TENSORS
    ]
    if unknown:
        raise ModelRefused(
            f"layer {layer_idx} passes {', '.join(unknown)} to attention, unknown to the engine "
            "(DeepSeek sparse attention is not supported)"
        )
    num_heads, num_kv_heads = call.query.shape[1], call.key.shape[1]
    if num_heads % num_kv_heads:
        raise ModelRefused(
            f"layer {layer_idx}: {num_heads} query heads are no multiple of {num_kv_heads} KV heads"
        )


def _spec(
    layer_idx: int,
    source: int,
    call: LayerCall,
    window: int | None,
    rope: tuple[RopeStyle, Rotation | None],
    latent: LatentProjection | None,
) -> LayerSpec:
    key_dim, value_dim = call.key.shape[-1], call.value.shape[-1]
    softcap, sinks = call.options.get("softcap"), call.options.get("s_aux")
    scale = call.options.get("scaling")
    return LayerSpec(
        layer_idx=layer_idx,
        num_heads=call.query.shape[1],
        num_kv_heads=call.key.shape[1],
        key_dim=key_dim if latent is None else key_dim + value_dim,
        value_dim=value_dim if latent is None else latent.rank,
        scale=call.query.shape[-1] ** -0.5 if scale is None else float(scale),
        window=window,
        softcap=None if softcap is None else float(softcap),
        sinks=None if sinks is None else sinks.detach(),
        rope=rope[0],
        rotation=rope[1],
        kv_source=source,
        latent_dim=None if latent is None else latent.rank,
    )
