"""The load-time probe: run the model once and read off every layer what it asks of attention.

The calls are the only source of truth: configuration and module attributes are known to disagree with them.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import PreTrainedModel

from headway.engine import forward_context, latent, rope_style
from headway.engine.errors import ModelRefused
from headway.engine.layer_spec import LayerSpec
from headway.engine.patch import attached

PROBE_TOKENS = 9
_KNOWN_TENSORS = {"s_aux", "position_ids"}

MaskFunction = Callable[..., Any]


@dataclass(slots=True)
class _Call:
    query: torch.Tensor
    key: torch.Tensor
    value: torch.Tensor
    mask: torch.Tensor | None
    options: dict[str, Any]


@dataclass(slots=True)
class _Recorder:
    """A forward context that keeps every call and attends to nothing, so that hidden states stay the same
    whatever the keys are."""

    latents: Mapping[int, latent.LatentProjection]
    rope_groups: tuple[()] = ()
    calls: dict[int, _Call] = field(default_factory=dict)
    masks: dict[int, tuple[torch.Tensor, MaskFunction]] = field(default_factory=dict)

    def attend(
        self,
        module: torch.nn.Module,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: torch.Tensor | None,
        options: Mapping[str, Any],
    ) -> torch.Tensor:
        layer_idx = getattr(module, "layer_idx", None)
        if not isinstance(layer_idx, int):
            raise ModelRefused(f"{type(module).__name__} has no layer_idx")
        if layer_idx in self.calls:
            raise ModelRefused(f"layer {layer_idx} attends twice in one forward pass")
        self.calls[layer_idx] = _Call(query, key, value, attention_mask, dict(options))
        projection = self.latents.get(layer_idx)
        value_dim = value.shape[-1] if projection is None else projection.value_dim
        return query.new_zeros(1, query.shape[2], query.shape[1], value_dim)

    def make_mask(self, *, mask_function: MaskFunction, q_length: int, kv_length: int, **_: Any) -> torch.Tensor:
        """Stand in for transformers' mask builder: remember by the mask's address what it would hold."""
        mask = torch.ones(1, 1, q_length, kv_length, dtype=torch.bool)
        self.masks[mask.data_ptr()] = (mask, mask_function)
        return mask


def probe(model: PreTrainedModel, longest: int) -> tuple[LayerSpec, ...]:
    """Derive the spec of every attention layer.

    Args:
        longest: tokens of the longest sequence to be served; windows are looked for up to this length.

    Raises:
        ModelRefused: a layer asks for something that the engine cannot do, with the reason.
    """
    rotated, outputs = _record(model, identity=False)
    plain, _ = _record(model, identity=True)
    expected = model.config.get_text_config(decoder=True).num_hidden_layers
    if sorted(rotated.calls) != list(range(expected)):
        missing = sorted(set(range(expected)) - set(rotated.calls))
        raise ModelRefused(
            f"{type(model).__name__}: layers {missing} of {expected} do not attend through AttentionInterface "
            "(recurrent, convolutional or linear-attention layers keep a state that is not paged yet)"
        )
    owners: dict[int, int] = {}
    specs = []
    for layer_idx in range(expected):
        call = rotated.calls[layer_idx]
        source = owners.setdefault(call.key.data_ptr(), layer_idx)
        style = rope_style.classify(plain.calls[layer_idx].query, call.query, outputs)
        specs.append(_spec(layer_idx, source, call, rotated, style, longest))
    return tuple(specs)


def _record(model: PreTrainedModel, *, identity: bool) -> tuple[_Recorder, list[Any]]:
    recorder = _Recorder(latent.projections(model))
    tokens = torch.zeros(1, PROBE_TOKENS, dtype=torch.long, device=model.device)
    positions = torch.arange(PROBE_TOKENS, device=model.device).unsqueeze(0)
    keep = torch.tensor([PROBE_TOKENS - 1], device=model.device)
    with (
        torch.inference_mode(),
        attached(model, mask=recorder.make_mask),
        rope_style.observed(model, identity=identity) as outputs,
        forward_context.entered(recorder),
    ):
        try:
            model(input_ids=tokens, position_ids=positions, use_cache=False, logits_to_keep=keep)
        except ModelRefused:
            raise
        except Exception as error:
            raise ModelRefused(
                f"{type(model).__name__} cannot run on a flattened batch without a Hugging Face cache: "
                f"{type(error).__name__}: {error}"
            ) from error
    return recorder, outputs


def _spec(
    layer_idx: int, source: int, call: _Call, recorder: _Recorder, style: rope_style.RopeStyle, longest: int
) -> LayerSpec:
    unknown = [
        name
        for name, value in call.options.items()
        if isinstance(value, torch.Tensor) and name not in _KNOWN_TENSORS
    ]
    if unknown:
        raise ModelRefused(f"layer {layer_idx} passes {', '.join(unknown)} to attention, unknown to the engine")
    projection = recorder.latents.get(layer_idx)
    num_heads, num_kv_heads = call.query.shape[1], call.key.shape[1]
    if num_heads % num_kv_heads:
        raise ModelRefused(f"layer {layer_idx} has {num_heads} query heads, no multiple of {num_kv_heads} KV heads")
    key_dim, value_dim = call.key.shape[-1], call.value.shape[-1]
    sinks = call.options.get("s_aux")
    softcap = call.options.get("softcap")
    return LayerSpec(
        layer_idx=layer_idx,
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        key_dim=key_dim if projection is None else key_dim + value_dim,
        value_dim=value_dim if projection is None else projection.rank,
        scale=float(call.options["scaling"]),
        window=_window(layer_idx, call.mask, recorder, longest),
        softcap=None if softcap is None else float(softcap),
        sinks=None if sinks is None else sinks.detach(),
        rope=style,
        kv_source=source,
        latent_dim=None if projection is None else projection.rank,
    )


def _window(layer_idx: int, mask: torch.Tensor | None, recorder: _Recorder, longest: int) -> int | None:
    """The window that the layer's own mask describes.

    The mask and not the `sliding_window` argument: some families do not pass it, and it cannot tell a window
    from a chunk.
    """
    _, visible = recorder.masks.get(0 if mask is None else mask.data_ptr(), (None, None))
    if visible is None:
        raise ModelRefused(f"layer {layer_idx} makes its attention mask by itself; what it hides cannot be known")
    # A chunk looks like a window from its last token only: ask from neighbours, too.
    queries = sorted({longest - 1, max(longest - 2, 0), longest // 2, 3 * longest // 4})
    widths = [_visible_keys(layer_idx, visible, query, longest) for query in queries]
    window = max(widths)
    if any(width != min(window, query + 1) for width, query in zip(widths, queries, strict=True)):
        raise ModelRefused(f"layer {layer_idx} attends in a pattern that is neither causal nor a sliding window")
    return None if window == longest else window


def _visible_keys(layer_idx: int, visible: MaskFunction, query: int, longest: int) -> int:
    keys = torch.arange(longest)
    zero = torch.tensor(0)
    row = visible(zero, zero, torch.tensor(query), keys).expand(longest)
    count = int(row.sum())
    if not bool(row[query + 1 - count : query + 1].all()):
        raise ModelRefused(f"layer {layer_idx} attends to later tokens or skips earlier ones")
    return count
