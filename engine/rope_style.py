"""Which rotation a layer applied to its queries, found by comparing a run with and without rotation."""

import itertools
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch

from headway.engine.layer_spec import RopeStyle
from headway.engine.rope import depends_on_length, is_rotary
from headway.engine.rotation import Rotation

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


def classify(
    plain: torch.Tensor, rotated: torch.Tensor, outputs: list[Any], frequencies: Iterable[torch.Tensor]
) -> tuple[RopeStyle, Rotation | None]:
    """Name the rotation that makes `rotated` of `plain`, and describe it if its frequencies are among these.

    Args:
        plain, rotated: queries [1, Hq, T, D] of one layer at positions 0…T-1, without and with rotation.
        outputs: what the rotary embeddings returned in the rotated run.
    """
    plain, rotated = plain[0].float(), rotated[0].float()
    tolerance = (1e-4 if outputs and _is_float32(outputs[0]) else 3e-2) * float(rotated.abs().max())

    def fits(candidate: torch.Tensor) -> bool:
        return bool((candidate - rotated).abs().max() <= tolerance)

    if fits(plain):
        return "none", None
    styles: tuple[Literal["half", "interleaved"], ...] = ("half", "interleaved")
    for cos, sin in _angles(outputs, plain.shape[-1]):
        found = _matching(cos, sin, frequencies)
        for style, last in itertools.product(styles, (False, True)):
            rotation = Rotation(style, last, cos[0] if found is None else found)
            if fits(rotation.apply(plain, cos, sin)):
                return style, None if found is None else rotation
    return "unknown", None


def constant_frequencies(model: torch.nn.Module) -> list[torch.Tensor]:
    """The frequencies, float32 [pairs], of the rotary embeddings that do not depend on the length."""
    return [
        buffer.detach().float()
        for module in model.modules()
        if is_rotary(module) and not depends_on_length(module)
        for name, buffer in module.named_buffers(recurse=False)
        if name.endswith("inv_freq")
    ]


def _matching(
    cos: torch.Tensor, sin: torch.Tensor, frequencies: Iterable[torch.Tensor]
) -> torch.Tensor | None:
    """Those frequencies that turn by these angles [T, pairs] at positions 0…T-1."""
    positions = torch.arange(len(cos), device=cos.device).unsqueeze(1)
    for candidate in frequencies:
        if candidate.shape == cos.shape[1:]:
            apart = torch.atan2(sin, cos) - positions * candidate
            if float((1 - apart.cos()).max()) < 1e-4:
                return candidate
    return None


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
