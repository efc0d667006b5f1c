"""streaming: the first and the latest tokens, nothing between (StreamingLLM, arXiv 2309.17453).

Two different methods go by that name. With `original` positions the tokens keep theirs, so the distance to
the sinks grows with the sequence. With `compact` positions, as in the paper, they stand side by side as if
the rest had never been. The paper keeps keys without rotation for that; here the query is turned back by
the gap instead when it meets the sinks, which comes to the same and leaves the cached keys as they are.
"""

from collections.abc import Sequence
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from headway.engine.errors import ConfigError
from headway.engine.layer_spec import LayerSpec
from headway.engine.methods.decode.base import DecodeMethod
from headway.engine.selection.decode_selection import DecodeSelection
from headway.engine.selection.layer_view import LayerView
from headway.engine.selection.settings import Count, DecodeSettings, Positive
from headway.kernels.merge_states import merge_states
from headway.kernels.selected_attention import selected_attention


class Settings(DecodeSettings):
    """What is read is the sinks and the window, whatever the context."""

    method: Literal["streaming"] = "streaming"
    sink_size: Count = Field(4, description="First tokens, always read.")
    window_size: Positive = Field(512, description="Latest tokens, always read.")
    positions: Literal["original", "compact"] = Field(
        "original", description="`compact`: the window follows the sinks without a gap."
    )


class Method(DecodeMethod[Settings]):
    """Sinks and window, one list for all heads and layers."""

    degrades: ClassVar[bool] = True

    def check(self, specs: Sequence[LayerSpec], page_size: int) -> None:  # noqa: ARG002
        """Compact positions need a rotation that can be turned back."""
        if self.settings.positions == "original":
            return
        fixed = [
            spec.layer_idx
            for spec in specs
            if spec.window is None and spec.rope != "none" and spec.rotation is None
        ]
        if fixed:
            raise ConfigError(
                f"positions: compact needs a rotary embedding of known style whose frequencies do not depend "
                f"on the length; layers {fixed} have none. Allowed: original"
            )

    def select(self, query: Tensor, layer: LayerView) -> DecodeSelection:  # noqa: ARG002
        """Tokens, one list."""
        what = ("streaming", self.settings.sink_size, self.settings.window_size)
        return DecodeSelection(layer.plan.memo(what, lambda: self._tokens(layer)), unit=1)

    def attend(self, query: Tensor, layer: LayerView, selection: DecodeSelection) -> Tensor | None:
        """With compact positions, sinks and window apart: only to the sinks the distance is another one."""
        rotation, sink_size = layer.spec.rotation, self.settings.sink_size
        if self.settings.positions == "original" or rotation is None or not sink_size:
            return None
        spec = layer.spec
        turned = rotation.turn(query, -self._gap(layer))
        outs, lses = zip(
            *(
                selected_attention(
                    rows, layer.key_cache, layer.value_cache, layer.plan, indices.contiguous(), 1,
                    scale=spec.scale, softcap=spec.softcap, sinks=sinks,
                )
                for rows, indices, sinks in (
                    (turned, selection.indices[..., :sink_size], None),
                    (query, selection.indices[..., sink_size:], spec.sinks),
                )
            ),
            strict=True,
        )  # fmt: skip
        return merge_states(torch.stack(outs), torch.stack(lses))[0]

    def _tokens(self, layer: LayerView) -> Tensor:
        """int32 [B, 1, sinks + window]"""
        settings, lens = self.settings, layer.step.kv_lens.unsqueeze(1)
        places = torch.arange(
            settings.sink_size + settings.window_size, device=lens.device, dtype=torch.int32
        )
        skipped = self._gap(layer).unsqueeze(1)
        tokens = torch.where(places < settings.sink_size, places, places + skipped)
        return torch.where(tokens < lens, tokens, -1).unsqueeze(1)

    def _gap(self, layer: LayerView) -> Tensor:
        """int32 [B], tokens between sinks and window."""
        kept = self.settings.sink_size + self.settings.window_size
        return (layer.step.kv_lens - kept).clamp_min(0)
