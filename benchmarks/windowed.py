"""Keys and values of a long haystack on needle in seconds: the windowed pass that its training uses."""

from functools import cache

import torch
from torch import Tensor

from headway.engine.needle.model import Needle
from headway.engine.needle.reading import read
from headway.engine.needle.verdicts import load, trainable


@cache
def _needle() -> Needle:
    return trainable(load())


def windowed(tokens: list[int]) -> list[tuple[Tensor, Tensor]]:
    """Rotated keys and values [1, Hkv, N, D] of every layer.

    Every token sees its surroundings and the first tokens only, which needle reads a haystack with as well as
    with everything; a dense pass over 131,072 tokens takes more than ten minutes on two cores.
    """
    with torch.inference_mode():
        model = _needle()
        return read(model, torch.tensor([tokens]), range(len(model.layers)))
