"""LayerView: one layer of the paged cache, as a method sees it for one decode group in one step."""

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor
from torch.nn.functional import pad

from headway.engine.selection.decode_selection import DecodeSelection
from headway.engine.selection.head_route import HeadRun
from headway.engine.selection.layer_cache import CacheView
from headway.engine.selection.plans import Plans
from headway.engine.selection.state import Stack
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
        streaming: the same in the pages of heads that stream; None: they have none of their own.
    """

    plan: AttentionPlan
    stack: Stack
    fresh: Tensor
    steps: Tensor
    handed: dict[int, DecodeSelection] = field(default_factory=dict)
    streaming: "GroupStep | None" = None

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


def group_step(plans: Plans, stack: Stack) -> GroupStep:
    """The step of the sequences whose states are stacked; those of no step so far are fresh."""
    device = plans.own.device
    steps = torch.tensor([member.steps for member in stack.members], device=device)
    step = GroupStep(plans.own, stack, steps == 0, steps)
    if plans.streaming is not None:
        step.streaming = replace(step, plan=plans.streaming)
    return step


@dataclass(slots=True, eq=False)
class LayerView(CacheView):
    """The read side of one layer.

    Attributes:
        run: begins the names of what is remembered; each run of heads has its own.
    """

    step: GroupStep
    run: str = ""

    @property
    def plan(self) -> AttentionPlan:
        """The sequences, one query each."""
        return self.step.plan

    def of_heads(self, run: HeadRun) -> "LayerView":
        """The same layer with these heads alone."""
        if run.whole and self.cache.streaming is None:
            return self
        step = self.step.streaming if run.streams else None
        name = f"{run.kv_heads.start}-{run.kv_heads.stop} "
        return LayerView(self.cache.of_heads(run), step or self.step, name)

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
