"""A text through a model twice: as it is, and with every KV head between full and streaming attention.

The two-way forward of DuoAttention (arXiv 2410.10819): a gated head returns gate · (what it returned in the
full run) + (1 - gate) · (sinks and window over what reaches it in the gated run). Only the latter can be
differentiated, with regard to the gates and to all that comes before.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad, scaled_dot_product_attention
from torch.utils.checkpoint import checkpoint
from transformers.modeling_layers import GradientCheckpointingLayer

from headway.engine import forward_context
from headway.engine.forward_context import LayerCall
from headway.engine.layer_spec import LayerSpec
from headway.engine.loaded import LoadedModel
from headway.engine.patch import attached

FULL_ROWS = 1024
"""Queries whose scores are held at once where PyTorch's attention does not know what a layer asks for."""

Gates = Mapping[int, Tensor]
"""By layer_idx, [Hkv]; a layer that is missing reads as it always does."""


@contextmanager
def two_streams(loaded: LoadedModel, shape: "Streaming", recompute: bool) -> Iterator["TwoStreams"]:
    """The model attached for both runs; as it was on leaving.

    Args:
        recompute: layers are computed again in the backward pass, which saves their memory.
    """
    layers = [one for one in loaded.model.modules() if isinstance(one, GradientCheckpointingLayer)]
    with attached(loaded.model), loaded.rope.attached(), ExitStack() as undone:
        for layer in layers if recompute else ():
            layer.forward = partial(checkpoint, layer.forward, use_reentrant=False)
            undone.callback(delattr, layer, "forward")
        yield TwoStreams(loaded, shape)


@dataclass(frozen=True, slots=True)
class Streaming:
    """What streaming heads read: the first tokens, so many before a tile of queries, and the tile so far."""

    sink_size: int
    window_size: int
    tile: int


class TwoStreams:
    """Both runs of one text at a time."""

    def __init__(self, loaded: LoadedModel, shape: Streaming) -> None:
        self._loaded, self._shape = loaded, shape

    @contextmanager
    def hidden(self, ids: list[int], gates: Gates, rows: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Last hidden states [rows, size] of the full and of the gated run; backward must run in here."""
        with self._both(ids, gates, lambda: self._states(ids, rows)) as both:
            yield both

    @contextmanager
    def log_probs(self, ids: list[int], switches: Gates, rows: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Log-probabilities [rows, vocab] of the full and of the switched run; backward must run in here.

        Switches are gates of 0 or 1, alike in all heads of a layer. A layer that is on attends to what
        reaches it in the switched run, so that it shows what others have lost before it; of one that is off,
        the full run tells what it would return.
        """
        with self._both(ids, switches, lambda: self._log_probs(ids, rows), switched=True) as both:
            yield both

    @contextmanager
    def _both(
        self, ids: list[int], gates: Gates, run: Callable[[], Tensor], *, switched: bool = False
    ) -> Iterator[tuple[Tensor, Tensor]]:
        groups = self._loaded.rope.groups([len(ids)], [range(len(ids))])
        device = self._loaded.device
        step = _Step(
            self._loaded.specs,
            self._shape,
            rope_groups=[(longest, torch.tensor(members, device=device)) for longest, members in groups],
            switched=switched,
        )
        with forward_context.entered(step):
            with torch.no_grad():
                full = run()
            step.gates = gates
            yield full, run()

    def _states(self, ids: list[int], rows: Tensor) -> Tensor:
        states: Tensor = self._loaded.model.base_model(**self._inputs(ids)).last_hidden_state[0, rows]
        return states.float()

    def _log_probs(self, ids: list[int], rows: Tensor) -> Tensor:
        logits: Tensor = self._loaded.model(**self._inputs(ids), logits_to_keep=rows).logits[0]
        return logits.float().log_softmax(-1)

    def _inputs(self, ids: list[int]) -> dict[str, Any]:
        device = self._loaded.device
        return {
            "input_ids": torch.tensor([ids], device=device),
            "position_ids": torch.arange(len(ids), device=device).unsqueeze(0),
            "use_cache": False,
        }


@dataclass(slots=True)
class _Step:
    """The forward context of one text; with `gates`, of its gated run.

    Attributes:
        switched: the gates are switches.
        full: by layer_idx, what attention returned in the full run, [1, T, Hq, Dv].
    """

    specs: Sequence[LayerSpec]
    shape: Streaming
    rope_groups: Sequence[tuple[int, Tensor]]
    gates: Gates | None = None
    switched: bool = False
    full: dict[int, Tensor] = field(default_factory=dict)

    def attend(self, call: LayerCall) -> Tensor:
        spec, query, key, value = self.specs[call.layer_idx], call.query, call.key, call.value
        if spec.window is not None:
            return _near(query, key, value, spec, Streaming(0, spec.window, self.shape.tile), spec.window)
        if self.gates is None or spec.layer_idx not in self.gates:
            out = self.full[spec.layer_idx] = _causal(query, key, value, spec)
            return out
        gate = self.gates[spec.layer_idx].repeat_interleave(spec.num_heads // spec.num_kv_heads)
        gate = gate.view(1, 1, -1, 1)
        near, full = _near(query, key, value, spec, self.shape), self.full[spec.layer_idx]
        if self.switched and bool((gate > 0.5).all()):
            near, full = near.detach(), _causal(query, key, value, spec)
        return (gate * full + (1 - gate) * near).to(query.dtype)


def _causal(query: Tensor, key: Tensor, value: Tensor, spec: LayerSpec) -> Tensor:
    """[1, T, Hq, Dv] over everything."""
    if spec.softcap is None and spec.sinks is None:
        out = scaled_dot_product_attention(
            query, key, value, is_causal=True, scale=spec.scale, enable_gqa=True
        )
        return out.transpose(1, 2)
    parts, length = [], query.shape[2]
    place = torch.arange(length, device=query.device)
    for start in range(0, length, FULL_ROWS):
        stop = min(start + FULL_ROWS, length)
        seen = place[:stop] <= place[start:stop, None]
        parts.append(_masked(query[:, :, start:stop], key[:, :, :stop], value[:, :, :stop], seen, spec))
    return torch.cat(parts, 2).transpose(1, 2)


def _near(
    query: Tensor, key: Tensor, value: Tensor, spec: LayerSpec, shape: Streaming, exactly: int | None = None
) -> Tensor:
    """[1, T, Hq, Dv] over sinks and window; `exactly`: each row sees so many keys, not its tile's window."""
    length, tile, sinks = query.shape[2], shape.tile, min(shape.sink_size, query.shape[2])
    tiles = -(-length // tile)
    behind = tiles * tile - length

    def spans(states: Tensor) -> Tensor:
        """[1, Hkv, T, D] → [tiles, Hkv, sinks + window + tile, D]"""
        local = pad(states, (0, 0, shape.window_size, behind)).unfold(2, shape.window_size + tile, tile)
        first = states[:, :, None, :sinks].expand(-1, -1, tiles, -1, -1)
        return torch.cat((first, local.transpose(-1, -2)), 3)[0].transpose(0, 1)

    places = partial(torch.arange, device=query.device)
    start = places(0, tiles * tile, tile)[:, None]
    rows = (start + places(tile))[..., None]
    local = (start + places(-shape.window_size, tile))[:, None]
    seen = (local >= sinks) & (local <= rows)
    if exactly is not None:
        seen &= local > rows - exactly
    seen = torch.cat((places(sinks) <= rows, seen), -1).unsqueeze(1)
    queries = pad(query, (0, 0, 0, behind)).reshape(-1, tiles, tile, query.shape[3]).transpose(0, 1)
    out = _masked(queries, spans(key), spans(value), seen, spec)
    return out.transpose(1, 2).flatten(0, 1)[:length].unsqueeze(0)


def _masked(query: Tensor, key: Tensor, value: Tensor, seen: Tensor, spec: LayerSpec) -> Tensor:
    """Attention [B, Hq, R, Dv] where `seen`, bool that broadcasts to [B, 1, R, N]; every row sees a key."""
    if spec.softcap is None and spec.sinks is None:
        return scaled_dot_product_attention(
            query, key, value, attn_mask=seen, scale=spec.scale, enable_gqa=True
        )
    group = query.shape[1] // key.shape[1]
    keys, values = key.repeat_interleave(group, 1), value.repeat_interleave(group, 1)
    scores = (query @ keys.transpose(-1, -2)).float() * spec.scale
    if spec.softcap is not None:
        scores = torch.tanh(scores / spec.softcap) * spec.softcap
    scores = scores.masked_fill(~seen, -torch.inf)
    if spec.sinks is not None:
        logits = spec.sinks.float().view(-1, 1, 1).expand(*scores.shape[:-1], 1)
        scores = torch.cat((scores, logits), -1)
    weights = scores.softmax(-1)[..., : key.shape[2]]
    return weights.to(values.dtype) @ values
