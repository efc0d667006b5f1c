"""Which rotation a layer applied to its queries, found by comparing a run with and without rotation."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from headway.engine.layer_spec import RopeStyle
from headway.engine.rope import is_rotary

Angles = tuple[torch.Tensor, torch.Tensor]


@contextmanager
def observed(model: torch.nn.Module, *, identity: bool) -> Iterator[list[Any]]:
    """Collect what the rotary embeddings of `model` return; with `identity`, let them rotate by nothing."""
    outputs: list[Any] = []

    def hook(_module: torch.nn.Module, _inputs: Any, output: Any) -> Any:
        outputs.append(output)
        return _identity(output) if identity else output

    handles = [module.register_forward_hook(hook) for module in model.modules() if is_rotary(module)]
    try:
        yield outputs
    finally:
        for handle in handles:
            handle.remove()


def classify(plain: torch.Tensor, rotated: torch.Tensor, outputs: list[Any]) -> RopeStyle:
    """Name the rotation that makes `rotated` of `plain`.

    Args:
        plain, rotated: queries [1, Hq, T, D] of one layer, without and with rotation.
        outputs: what the rotary embeddings returned in the rotated run.
    """
    plain, rotated = plain[0].float(), rotated[0].float()
    tolerance = (1e-4 if outputs and _is_float32(outputs[0]) else 3e-2) * float(rotated.abs().max())

    def fits(candidate: torch.Tensor) -> bool:
        return bool((candidate - rotated).abs().max() <= tolerance)

    if fits(plain):
        return "none"
    styles: tuple[tuple[RopeStyle, Callable[..., torch.Tensor]], ...] = (
        ("half", _rotate_half),
        ("interleaved", _rotate_interleaved),
    )
    for cos, sin in _angles(outputs, plain.shape[-1]):
        size = 2 * cos.shape[-1]
        for style, rotate in styles:
            front = torch.cat((rotate(plain[..., :size], cos, sin), plain[..., size:]), dim=-1)
            back = torch.cat((plain[..., :-size], rotate(plain[..., -size:], cos, sin)), dim=-1)
            if fits(front) or fits(back):
                return style
    return "unknown"


def _is_float32(output: Any) -> bool:
    first = output[0] if isinstance(output, tuple) else output
    return bool(first.dtype in (torch.float32, torch.complex64))


def _identity(output: Any) -> Any:
    if isinstance(output, tuple):
        cos, sin = output
        return torch.ones_like(cos), torch.zeros_like(sin)
    return torch.ones_like(output)


def _angles(outputs: list[Any], head_dim: int) -> Iterator[Angles]:
    """Every reading of the outputs as cosines and sines [T, pairs]: one number a pair, or each number twice,
    as two halves or side by side."""
    for output in outputs:
        cos, sin = output if isinstance(output, tuple) else (output.real, output.imag)
        cos, sin = (table.float().reshape(-1, table.shape[-1]) for table in (cos, sin))
        pairs = cos.shape[-1] // 2
        for reading in (slice(0, pairs), slice(0, None, 2), slice(None)):
            if 0 < 2 * cos[:, reading].shape[-1] <= head_dim:
                yield cos[:, reading], sin[:, reading]


def _rotate_half(states: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    first, second = states.chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)


def _rotate_interleaved(states: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    even, odd = states[..., ::2], states[..., 1::2]
    return torch.stack((even * cos - odd * sin, odd * cos + even * sin), dim=-1).flatten(-2)
