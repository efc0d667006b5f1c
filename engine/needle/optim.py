"""Muon for the hidden matrices, in float32: torch.optim.Muon uses bfloat16, which many CPUs emulate."""

from collections import defaultdict
from collections.abc import Iterable

import torch
import torch.distributed as dist
from torch import Tensor
from torch.optim import Optimizer


def orthogonalise(g: Tensor, steps: int = 5) -> Tensor:
    """Newton-Schulz iteration of Keller Jordan's Muon; g [N, rows, columns] -> same, singular values ~1."""
    a, b, c = 3.4445, -4.7750, 2.0315
    tall = g.shape[1] > g.shape[2]
    x = g.mT if tall else g
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(steps):
        y = x @ x.mT
        x = a * x + (b * y + c * y @ y) @ x
    out: Tensor = x.mT if tall else x
    return out


class Muon(Optimizer):
    """Momentum, orthogonalised; the step has the root mean square of an Adam step (0.2 * sqrt(max(r, c)))."""

    def __init__(
        self, params: Iterable[Tensor], lr: float, momentum: float = 0.95, decay: float = 0.05
    ) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "decay": decay})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]  # noqa: ARG002
        """One step for all matrices, those of one shape together."""
        shared = dist.is_initialized()
        rank, world = (dist.get_rank(), dist.get_world_size()) if shared else (0, 1)
        for group in self.param_groups:
            ready: list[tuple[Tensor, Tensor]] = []
            shapes: dict[torch.Size, list[Tensor]] = defaultdict(list)
            for p in group["params"]:
                if p.grad is not None:
                    shapes[p.shape].append(p)
            for shape, params in shapes.items():
                moments = []
                for p in params:
                    assert p.grad is not None
                    m = self.state[p].setdefault("momentum", torch.zeros_like(p))
                    m.lerp_(p.grad, 1 - group["momentum"])
                    moments.append(p.grad.lerp(m, group["momentum"]))
                # Each worker iterates on its share of the matrices; the sum below hands them round.
                updates = torch.zeros(len(params), *shape)
                updates[rank::world] = orthogonalise(torch.stack(moments[rank::world]))
                ready += zip(params, updates, strict=True)
            flat = torch.cat([u.reshape(-1) for _, u in ready])
            if shared:
                dist.all_reduce(flat)
            for (p, _), u in zip(ready, torch.split(flat, [p.numel() for p, _ in ready]), strict=True):
                p.mul_(1 - group["lr"] * group["decay"])
                p.add_(u.view_as(p), alpha=-group["lr"] * 0.2 * max(p.shape) ** 0.5)
