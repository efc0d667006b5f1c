"""LayerView: one layer of the paged cache, as a method sees it for one decode group in one step."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn.functional import pad

from headway.engine.layer_spec import LayerSpec
from headway.engine.selection.decode_selection import DecodeSelection
from headway.engine.selection.head_route import HeadRun
from headway.engine.selection.state import Stack
from headway.engine.sidecars import Sidecar, SidecarStore
from headway.kernels.paged_attention import AttentionPlan


@dataclass(slots=True, eq=False)
class GroupStep:
    """What the layers of one step share.

    Attributes:
        plan: the B sequences, one query each.
        stack: what the method remembers of them.
        fresh: bool [B], sequences whose first step this is.
        steps: int64 [B], decode steps done before this one.
        handed: selections of this step's earlier layers.
    """

    plan: AttentionPlan
    stack: Stack
    fresh: Tensor
    steps: Tensor
    handed: dict[int, DecodeSelection] = field(default_factory=dict)

    @property
    def kv_lens(self) -> Tensor:
        """int32 [B], the token of this step included."""
        return self.plan.kv_lens

    def forced(self, unit: int, sink_size: int, window_size: int) -> Tensor:
        """bool [B, N]: units of `unit` tokens that hold a sink or a token of the window, tail included."""

        def build() -> Tensor:
            width = self.plan.max_pages * self.plan.page_size // unit
            first = torch.arange(0, width * unit, unit, device=self.plan.device)
            lens = self.kv_lens.unsqueeze(1)
            return ((first < sink_size) | (first + unit > lens - window_size)) & (first < lens)

        return self.plan.memo(("forced", unit, sink_size, window_size), build)


@dataclass(slots=True, eq=False)
class LayerView:
    """The read side of one layer.

    Attributes:
        key_cache, value_cache: [num_pages, page_size, Hkv, D].
        run: begins the names of what is remembered; each run of heads has its own.
    """

    spec: LayerSpec
    key_cache: Tensor
    value_cache: Tensor
    step: GroupStep
    store: SidecarStore
    run: str = ""

    @property
    def plan(self) -> AttentionPlan:
        """The sequences, one query each."""
        return self.step.plan

    @property
    def page_size(self) -> int:
        """Tokens a page."""
        return self.key_cache.shape[1]

    @property
    def sidecars(self) -> Mapping[Sidecar, Tensor]:
        """Tables [num_pages, units, Hkv, numbers] of the layer that owns the keys."""
        return self.store.of(self.spec.kv_source)

    def of_heads(self, run: HeadRun) -> "LayerView":
        """The same layer with these heads alone."""
        if run.whole:
            return self
        kv_heads = run.kv_heads
        return LayerView(
            run.spec,
            self.key_cache[:, :, kv_heads],
            self.value_cache[:, :, kv_heads],
            self.step,
            self.store.of_heads(kv_heads),
            f"{kv_heads.start}-{kv_heads.stop} ",
        )

    def get(self, name: str) -> Tensor | None:
        """What the method remembered under this name, [B, …]; zeros where a sequence is fresh."""
        return self.step.stack.tensors.get((self.spec.layer_idx, self.run + name))

    def put(self, name: str, tensor: Tensor) -> None:
        """Remember a tensor [B, …] until the sequences' next step; it is never written into."""
        self.step.stack.tensors[self.spec.layer_idx, self.run + name] = tensor

    def keep(self, name: str, tensor: Tensor, rows: Tensor) -> Tensor:
        """Remember `tensor` for the sequences `rows` (bool [B]) and what was there for the others.

        Of two different lengths in the last dimension, the shorter is filled up with zeros.
        """
        before = self.get(name)
        if before is not None:
            longer = before.shape[-1] - tensor.shape[-1]
            if longer:
                tensor, before = pad(tensor, (0, max(0, longer))), pad(before, (0, max(0, -longer)))
            wide = rows.view(-1, *(1 for _ in tensor.shape[1:]))
            tensor = torch.where(wide, tensor, before)
        self.put(name, tensor)
        return tensor
