"""The one attention function that Hugging Face models call, and what it does over the paged cache."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from headway.engine import forward_context
from headway.engine.cache import KVCache
from headway.engine.latent import LatentProjection
from headway.engine.layer_spec import LayerSpec
from headway.engine.selection.selection_step import SelectionStep
from headway.engine.sidecars import WrittenPages, carries
from headway.kernels.paged_attention import AttentionPlan, paged_attention
from headway.kernels.store_kv import store_kv


def attend(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    **options: Any,
) -> tuple[torch.Tensor, None]:
    """The function registered with `AttentionInterface`: hands the layer to the forward context.

    Raises:
        RuntimeError: the model runs outside of a forward context.
    """
    context = forward_context.current()
    if context is None:
        raise RuntimeError("this model is attached to the engine; it runs only through its ModelRunner")
    return context.attend(module, query, key, value, attention_mask, options), None


@dataclass(frozen=True, slots=True)
class PagedStep:
    """The forward context of one batch.

    Attributes:
        specs: by `layer_idx`.
        latents: MLA projections by `layer_idx`.
        plan: all tokens of the batch.
        slot_mapping: int64 [T], the cache cell of each token.
        written: the pages of those cells; None: no sidecar is kept.
        selection: what is not dense in this batch; None: nothing.
    """

    specs: tuple[LayerSpec, ...]
    cache: KVCache
    latents: Mapping[int, LatentProjection]
    plan: AttentionPlan
    slot_mapping: torch.Tensor
    written: WrittenPages | None = None
    selection: SelectionStep | None = None
    rope_groups: Sequence[tuple[int, torch.Tensor]] = ()

    def attend(
        self,
        module: torch.nn.Module,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: torch.Tensor | None,  # noqa: ARG002 - the mask is in the plan and the spec
        options: Mapping[str, Any],  # noqa: ARG002 - the spec holds what the probe saw
    ) -> torch.Tensor:
        """Write keys, values and sidecars to their pages, then attend over the pages."""
        spec = self.specs[int(module.layer_idx)]  # type: ignore[arg-type]
        key_pages, value_pages = self.cache.pages(spec.kv_source)
        rows, new_key = _rows(query), _rows(key)
        latent = self.latents.get(spec.layer_idx)
        if latent is not None:
            rows = latent.absorb(rows)
            new_key = torch.cat((new_key, _rows(value)), dim=-1)
            store_kv(new_key, None, key_pages, None, self.slot_mapping)
        elif spec.owns_cache:
            store_kv(new_key, _rows(value), key_pages, value_pages, self.slot_mapping)
        if self.written is not None and carries(spec):
            self.cache.sidecars.write(spec.layer_idx, new_key, key_pages, self.written, self.slot_mapping)
        if self.selection is not None and spec.window is None:
            output = self.selection.attend(rows, spec, key_pages, value_pages, self.cache.sidecars)
        else:
            output, _ = paged_attention(
                rows,
                key_pages,
                value_pages,
                self.plan,
                scale=spec.scale,
                window=spec.window,
                softcap=spec.softcap,
                sinks=spec.sinks,
            )
        return (output if latent is None else latent.expand(output)).unsqueeze(0)


def _rows(states: torch.Tensor) -> torch.Tensor:
    """[1, H, T, D] → [T, H, D], a view."""
    return states.squeeze(0).transpose(0, 1)
