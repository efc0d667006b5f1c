"""Rotation: a rotary embedding as a turn by a constant angle per position."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True, eq=False)
class Rotation:
    """How one layer rotates its queries and keys.

    Attributes:
        style: `half` pairs number i with number i + pairs, `interleaved` 2i with 2i + 1.
        last: whether the rotated numbers are a head's last ones; otherwise its first ones.
        frequencies: float32 [pairs], radians a position.
    """

    style: Literal["half", "interleaved"]
    last: bool
    frequencies: Tensor

    def turn(self, states: Tensor, positions: Tensor) -> Tensor:
        """Rotate rotated states [B, H, D] further by so many positions [B]; negative: back."""
        angles = positions.double().unsqueeze(1) * self.frequencies.double()
        cos, sin = angles.cos().float().unsqueeze(1), angles.sin().float().unsqueeze(1)
        return self.apply(states.float(), cos, sin).to(states.dtype)

    def apply(self, states: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """Rotate states [..., D] by angles whose cosines and sines are [..., pairs]."""
        size = 2 * cos.shape[-1]
        rotate = rotate_half if self.style == "half" else rotate_interleaved
        if self.last:
            return torch.cat((states[..., :-size], rotate(states[..., -size:], cos, sin)), dim=-1)
        return torch.cat((rotate(states[..., :size], cos, sin), states[..., size:]), dim=-1)


def rotate_half(states: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate pairs (i, i + half)."""
    first, second = states.chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)


def rotate_interleaved(states: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate pairs (2i, 2i + 1)."""
    even, odd = states[..., ::2], states[..., 1::2]
    return torch.stack((even * cos - odd * sin, odd * cos + even * sin), dim=-1).flatten(-2)
