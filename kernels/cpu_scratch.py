"""Memory for large copies, kept by each thread: mapping fresh pages takes longer than the copy itself."""

import math
import threading

import torch
from torch import Tensor


class Scratch(threading.local):
    """Contents last until the same name is asked for again."""

    def __init__(self) -> None:
        self._held: dict[tuple[str, torch.dtype], Tensor] = {}

    def take(self, name: str, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        size = math.prod(shape)
        held = self._held.get((name, dtype))
        if held is None or held.numel() < size:
            with torch.inference_mode(False):  # else it could be written in inference mode only
                held = self._held[name, dtype] = torch.empty(size, dtype=dtype)
        return held[:size].view(shape)
