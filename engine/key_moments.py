"""KeyMoments: mean and covariance of a layer's keys, over any number of tokens, without keeping the keys."""

import torch
from torch import Tensor

AT_ONCE = 4096
"""Tokens that are brought to double precision together."""


class KeyMoments:
    """Running moments of each KV head, in fp64 (update of Chan, Golub and LeVeque, 1979).

    Attributes:
        count: tokens added.
        mean: [Hkv, D].
    """

    def __init__(self, num_kv_heads: int, key_dim: int, device: torch.device) -> None:
        self.count = 0
        self.mean = torch.zeros(num_kv_heads, key_dim, dtype=torch.float64, device=device)
        self._scatter = self.mean.new_zeros(num_kv_heads, key_dim, key_dim)

    def add(self, keys: Tensor) -> None:
        """Take in keys [T, Hkv, D]."""
        for part in torch.split(keys, AT_ONCE):
            rows = part.double().transpose(0, 1)
            new, total = rows.shape[1], self.count + rows.shape[1]
            mean = rows.mean(1)
            centred, shift = rows - mean.unsqueeze(1), mean - self.mean
            between = shift.unsqueeze(2) * shift.unsqueeze(1) * (self.count * new / total)
            self._scatter += centred.mT @ centred + between
            self.mean += shift * (new / total)
            self.count = total

    @property
    def covariance(self) -> Tensor:
        """fp64 [Hkv, D, D]; of the tokens added, not an estimate beyond them."""
        return self._scatter / self.count


def principal(covariance: Tensor) -> tuple[Tensor, Tensor]:
    """Variances [Hkv, D] and directions [Hkv, D, D] as columns, the widest first.

    About the mean: what all keys share adds the same to every score of a query.
    """
    variances, directions = torch.linalg.eigh(covariance)
    return variances.flip(-1).clamp_min(0), directions.flip(-1)
