"""SelectionState: what a method remembers of one request, and how a batch sees it."""

from collections.abc import Callable, Collection, Hashable
from dataclasses import dataclass, field

import torch
from torch import Tensor

Name = tuple[int, str]
"""Layer number and the method's own word."""


@dataclass(slots=True, eq=False)
class SelectionState:
    """One request's lists, last queries and counters. Lives as long as the request holds pages.

    Attributes:
        rows: the method's tensors [1, …], while no batch has them stacked.
        observed: tokens of the prompt up to the last one that its method saw; 0: none.
        steps: decode steps done.
        layer_steps: layers attended to, summed over steps.
        attended, context: tokens read and tokens there, summed over steps and layers.
        refreshes: how often a list was made anew, summed over layers.
    """

    rows: dict[Name, Tensor] = field(default_factory=dict)
    observed: int = 0
    steps: int = 0
    layer_steps: int = 0
    attended: float = 0.0
    context: float = 0.0
    refreshes: float = 0.0


@dataclass(slots=True, eq=False)
class Stack:
    """The states of one decode group, stacked along the first dimension.

    Attributes:
        tensors: [B, …]; a member that has no such tensor yet has zeros.
        attended, refreshes: [B] on the device, not yet added to the members; never written into.
    """

    members: tuple[SelectionState, ...]
    tensors: dict[Name, Tensor]
    attended: Tensor
    refreshes: Tensor

    def unstack(self) -> None:
        """Give every member its rows back."""
        for row, member in enumerate(self.members):
            member.rows = {name: tensor[row : row + 1].clone() for name, tensor in self.tensors.items()}
        self.settle()

    def settle(self) -> None:
        """Add what was counted on the device to the members; the host waits for the device."""
        counted = zip(self.members, self.attended.tolist(), self.refreshes.tolist(), strict=True)
        for member, attended, refreshes in counted:
            member.attended += attended
            member.refreshes += refreshes
        self.attended = torch.zeros_like(self.attended)
        self.refreshes = torch.zeros_like(self.refreshes)

    def restorer(self) -> Callable[[], None]:
        """What brings back all that is remembered and counted now."""
        remember, attended, refreshes = restorer(self.tensors), self.attended, self.refreshes
        counted = [(member.layer_steps, member.attended, member.context) for member in self.members]

        def restore() -> None:
            remember()
            self.attended, self.refreshes = attended, refreshes
            for member, counts in zip(self.members, counted, strict=True):
                member.layer_steps, member.attended, member.context = counts

        return restore


class Stacks:
    """The stacked states of every method in use; a group that does not change costs nothing."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stacks: dict[Hashable, Stack] = {}

    def of(self, key: Hashable, members: tuple[SelectionState, ...]) -> Stack:
        """The stack of these members, in this order, for the method `key`."""
        stack = self._stacks.get(key)
        if stack is not None and stack.members == members:
            return stack
        if stack is not None:
            self._stacks.pop(key).unstack()
            del stack  # two copies of all that is remembered are there at most
        names = {name for member in members for name in member.rows}
        zeros = torch.zeros(len(members), dtype=torch.float64, device=self._device)
        stack = Stack(members, {name: _stacked(name, members) for name in names}, zeros, zeros.clone())
        self._stacks[key] = stack
        for member in members:
            member.rows = {}
        return stack

    def keep_only(self, keys: Collection[Hashable]) -> None:
        """Let go of the other methods' stacks; their members, as far as they live on, keep their rows."""
        for key in self._stacks.keys() - keys:
            self._stacks.pop(key).unstack()

    def forget(self, state: SelectionState) -> None:
        """Bring this state's counters up to date and let go of its stack; other members keep their rows."""
        for key, stack in list(self._stacks.items()):
            if state in stack.members:
                stack.unstack()
                del self._stacks[key]


def restorer(tensors: dict[Name, Tensor]) -> Callable[[], None]:
    """What brings back the entries that are there now; none is ever written into, so none is copied."""
    before = dict(tensors)

    def restore() -> None:
        tensors.clear()
        tensors.update(before)

    return restore


def _stacked(name: Name, members: tuple[SelectionState, ...]) -> Tensor:
    rows = [member.rows.get(name) for member in members]
    shapes = [row.shape[1:] for row in rows if row is not None]
    size = [max(sizes) for sizes in zip(*shapes, strict=True)]
    some = next(row for row in rows if row is not None)
    stacked = some.new_zeros(len(members), *size)
    for place, row in zip(stacked, rows, strict=True):
        if row is not None:
            place[tuple(slice(length) for length in row.shape[1:])] = row[0]
    return stacked
