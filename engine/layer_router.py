"""LayerRouter: for each layer a small network that sees one vector of a prompt and says full or sparse.

As in Flux Attention: a mean query of size d through layers of 8d, 2d, 4d and d to two logits. Before it, the
query is divided by its root mean square, since those of different models and layers differ by orders.
"""

from collections.abc import Mapping
from itertools import pairwise

import torch
from torch import Tensor, nn

FULL_BIAS = 4.5
"""Of an untrained router: it sends nearly everything full."""
EVEN = 0.5
"""The least probability with which a layer goes full."""


class LayerRouter(nn.Module):
    """The routers of one model.

    Args:
        sizes: by layer_idx, the size d of its queries.
    """

    def __init__(self, sizes: Mapping[int, int]) -> None:
        super().__init__()
        self.networks = nn.ModuleDict({str(layer): _network(size) for layer, size in sizes.items()})

    @property
    def layers(self) -> tuple[int, ...]:
        """The layers that it decides on, in order."""
        return tuple(map(int, self.networks))

    def forward(self, queries: Mapping[int, Tensor]) -> Tensor:
        """Logits float32 [layers, 2], sparse and full, for one prompt's queries, [d] by layer_idx."""
        return torch.stack([network(queries[int(layer)]) for layer, network in self.networks.items()])

    @torch.no_grad()
    def chances(self, queries: Mapping[int, Tensor]) -> Tensor:
        """Float32 [layers], each layer's probability of being full."""
        logits: Tensor = self(queries)
        return logits.softmax(1)[:, 1]

    def full_layers(self, queries: Mapping[int, Tensor]) -> tuple[int, ...]:
        """The layers that read everything for this prompt."""
        full = (self.chances(queries) >= EVEN).tolist()
        return tuple(layer for layer, is_full in zip(self.layers, full, strict=True) if is_full)


def _network(size: int) -> nn.Sequential:
    widths = (size, 8 * size, 2 * size, 4 * size, size)
    parts: list[nn.Module] = [nn.RMSNorm(size, elementwise_affine=False)]
    for before, after in pairwise(widths):
        parts += [nn.Linear(before, after), nn.SiLU()]
    last = nn.Linear(size, 2)
    with torch.no_grad():
        last.bias.copy_(torch.tensor([0.0, FULL_BIAS]))
    return nn.Sequential(*parts, last)
