"""Launches of long chunks: a grid's first axis has room for 2^31 - 1 programs, the others for 65,535."""

from unittest.mock import Mock

import pytest
import torch

from headway.kernels.paged_attention import gpu as paged_gpu
from headway.kernels.paged_attention import plan
from headway.kernels.tile_attention import gpu as tile_gpu

TOKENS, HEADS, PAGE = 16_384, 128, 64  # MLA: all heads share one KV head


class Launches(list):
    """Stands in for a kernel and keeps its grids."""

    def __getitem__(self, grid):
        self.append(grid)
        return Mock()


@pytest.mark.parametrize("sparse", [False, True], ids=["paged", "tiles"])
def test_a_long_chunk_of_mla(monkeypatch, sparse):
    launches = Launches()
    monkeypatch.setattr(paged_gpu, "attend_kernel", launches)
    monkeypatch.setattr(tile_gpu, "attend_tile_kernel", launches)
    pages = TOKENS // PAGE
    query, out = (torch.zeros(1).expand(TOKENS, HEADS, dim) for dim in (576, 512))
    key = torch.zeros(1).expand(pages, PAGE, 1, 576)
    chunk = plan([TOKENS], [TOKENS], [list(range(pages))], PAGE, "cpu")
    if sparse:
        local_from = torch.zeros(1, TOKENS // 128, dtype=torch.int32)
        lists = local_from, 4, None, 1, None
        tile_gpu.tile_attention(query, key, key[..., :512], chunk, 128, *lists, 1.0, None, None, None, out)
    else:
        paged_gpu.paged_attention(query, key, key[..., :512], chunk, 1.0, None, None, None, out)
    ((programs, *others),) = launches
    assert programs == 65_536
    assert max(others) == 1
