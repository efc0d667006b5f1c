"""How a batch is cut into programs for the GPU: host numbers only, shared by all layers of a kind."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from headway.kernels.paged_attention.plan import AttentionPlan

WAVES = 4  # programs per core that splitting aims at: several resident at once hide each other's waits
SPLIT_TOKENS = 256  # fewer keys than this are not worth a partial result


@dataclass(frozen=True)
class Launch:
    """Tiles of one height. Decodes and chunks launch apart: a decode should not pay for a chunk's rows."""

    block_m: int
    splits: int
    tiles: Tensor  # int32 [n, 3]: sequence, first row, place of the sequence's first token in `tokens`
    tokens: Tensor  # int32: the batch tokens of this launch


def schedule(
    plan: AttentionPlan, sequences: list[int], num_kv_heads: int, group_size: int, decode_m: int,
    chunk_m: int, window: int | None, cores: int,
) -> list[Launch]:  # fmt: skip
    decodes = [b for b in sequences if plan.host_q_lens[b] == 1]
    chunks = [b for b in sequences if plan.host_q_lens[b] > 1]
    return [
        _launch(plan, chosen, block_m, num_kv_heads, group_size, window, cores)
        for chosen, block_m in ((decodes, decode_m), (chunks, chunk_m))
        if chosen
    ]


def _launch(
    plan: AttentionPlan, chosen: list[int], block_m: int, num_kv_heads: int, group_size: int, window: int |
    None, cores: int,
) -> Launch:  # fmt: skip
    tiles: list[tuple[int, int, int, int]] = []
    tokens: list[int] = []
    for b in chosen:
        q_len, kv_len = plan.host_q_lens[b], plan.host_kv_lens[b]
        for row in range(0, q_len * group_size, block_m):
            last = min((row + block_m - 1) // group_size, q_len - 1)
            tiles.append((kv_len - q_len + last + 1, b, row, len(tokens)))
        rows = plan.rows(b)
        tokens.extend(range(rows.start, rows.stop))
    tiles.sort(key=lambda tile: -tile[0])  # heavy tiles first, so that the last wave is short
    longest = max(plan.host_kv_lens[b] for b in chosen)
    if window is not None:
        longest = min(longest, window + block_m)
    splits = max(1, min(-(-WAVES * cores // (len(tiles) * num_kv_heads)), longest // SPLIT_TOKENS))
    host = np.array([tile[1:] for tile in tiles], dtype=np.int32)
    device = plan.device
    on_device = [torch.from_numpy(each).to(device) for each in (host, np.array(tokens, dtype=np.int32))]
    return Launch(block_m, splits, *on_device)
