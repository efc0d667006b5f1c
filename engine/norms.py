"""RMS norms computed in fewer passes, for as long as a model is attached."""

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.nn import functional

from headway.engine.patch import computed_by

Norm = Callable[[Tensor], Tensor]


@contextmanager
def fused_norms(model: torch.nn.Module) -> Iterator[None]:
    """Compute every RMS norm of `model` in one or a few operations; undone on leaving.

    A norm is known by what it computes, not by its class: a module with one weight, one input and one
    epsilon, whose outputs ours equals to within rounding, with the weight as it is or as 1 + weight (Gemma).
    All other modules are left alone. The weights must not be replaced meanwhile.
    """
    found = {module: norm for module in model.modules() if (norm := _recognised(module)) is not None}
    with computed_by(found):
        yield


@torch.no_grad()
def _recognised(module: torch.nn.Module) -> Norm | None:
    parameters = list(module.parameters())
    if len(parameters) != 1 or parameters[0].ndim != 1 or parameters[0].is_meta or "forward" in vars(module):
        return None
    if [*module.children(), *module.buffers()] or len(inspect.signature(module.forward).parameters) != 1:
        return None
    weight = parameters[0].detach()
    samples = _samples(weight)
    try:
        expected = [module(sample) for sample in samples]
    except (RuntimeError, TypeError, ValueError):  # its input is no row of the weight's size
        return None
    for epsilon in {value for value in vars(module).values() if isinstance(value, float)}:
        for scale in (weight, 1 + weight):
            norm = _norm(scale, epsilon)
            if all(_equal(norm(sample), rows) for sample, rows in zip(samples, expected, strict=True)):
                return norm
    return None


def _samples(weight: Tensor) -> list[Tensor]:
    """Rows of ordinary size, rows that show the epsilon, and a row of zeros."""
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(1, 3, len(weight), generator=generator)
    return [(rows * size).to(weight.device, weight.dtype) for size in (1.0, 30.0, 1e-3, 0.0)]


def _equal(ours: Tensor, theirs: object) -> bool:
    if not isinstance(theirs, Tensor) or (ours.shape, ours.dtype) != (theirs.shape, theirs.dtype):
        return False
    return torch.allclose(ours, theirs, rtol=4 * torch.finfo(ours.dtype).eps, atol=0.0)


def _norm(scale: Tensor, epsilon: float) -> Norm:
    size = len(scale)
    if scale.device.type != "cpu" or scale.dtype != torch.float32:
        return lambda states: functional.rms_norm(states, (size,), scale, epsilon)
    floor = torch.tensor(epsilon)

    def norm(states: Tensor) -> Tensor:
        # PyTorch's rms_norm is no kernel of its own on a CPU: this takes 0.6 of its time.
        length = torch.linalg.vector_norm(states, dim=-1, keepdim=True)
        return states.mul(torch.addcmul(floor, length, length, value=1 / size).rsqrt_()).mul_(scale)

    return norm
