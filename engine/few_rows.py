"""Linear layers of a CPU that take steps of a few tokens another way, for as long as a model is attached."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.nn import functional

from headway.engine.patch import computed_by
from headway.kernels.few_row_linear import few_row_linear, worthwhile_rows

Layer = Callable[[Tensor], Tensor]


@contextmanager
def few_row_layers(model: torch.nn.Module) -> Iterator[None]:
    """Let `Linear`s of `model` multiply few rows by `few_row_linear` where that pays; undone on leaving.

    The weights must not be replaced meanwhile.
    """
    modules = [module for module in model.modules() if type(module) is torch.nn.Linear]
    found: dict[torch.nn.Module, Layer] = {m: layer for m in modules if (layer := _layer(m)) is not None}
    with computed_by(found):
        yield


def _layer(module: torch.nn.Linear) -> Layer | None:
    weight, bias = module.weight.detach(), None if module.bias is None else module.bias.detach()
    size, few = weight.shape[1], worthwhile_rows(weight)
    if not few or "forward" in vars(module):
        return None

    def layer(states: Tensor) -> Tensor:
        if states.numel() // size in few:
            return few_row_linear(states, weight, bias)
        return functional.linear(states, weight, bias)

    return layer
