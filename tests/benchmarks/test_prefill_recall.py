"""The recall of a prefill method is the attention mass that it reads."""

import pytest
import torch

from benchmarks.prefill_recall import ROWS, watched
from headway.engine.layer_spec import LayerSpec
from headway.engine.methods.prefill.streaming import Method, Settings
from headway.engine.selection.chunk_view import ChunkView
from headway.engine.selection.layer_cache import LayerCache
from headway.engine.sidecars import SidecarStore
from headway.kernels.paged_attention import plan

PAGE, HEADS, KV_HEADS, DIM, SCALE = 8, 4, 2, 16, 0.5


def chunk_of(tokens: int, length: int) -> ChunkView:
    """The last `tokens` of a sequence of random keys, its pages in disorder."""
    heads = {"num_heads": HEADS, "num_kv_heads": KV_HEADS, "key_dim": DIM, "value_dim": DIM}
    spec = LayerSpec(layer_idx=0, kv_source=0, scale=SCALE, **heads)
    pages = torch.randperm(-(-length // PAGE)).tolist()
    keys, values = torch.randn(2, len(pages), PAGE, KV_HEADS, DIM).unbind()
    store = SidecarStore(frozenset(), [spec], len(pages), PAGE, keys.dtype, keys.device)
    cache = LayerCache(spec, keys, values, store)
    return ChunkView(cache, plan([tokens], [length], [pages], PAGE, "cpu"), length)


@pytest.mark.parametrize("tokens", [1, 7, ROWS])
def test_recall_is_the_softmax_mass_of_what_is_read(tokens: int) -> None:
    print("seed", torch.seed())
    length, window, sinks = 61, 6, 3
    chunk = chunk_of(tokens, length)
    query = torch.randn(tokens, HEADS, DIM)
    method = Method(Settings(tile=1, window_size=window, sink_size=sinks, dense_below=0, dense_tail=0))
    with watched(method) as found:
        method.attend(query, chunk)
    assert "attend" not in vars(method)

    keys = chunk.keys().repeat_interleave(HEADS // KV_HEADS, 1)
    expected = []
    for row in range(tokens):
        position = length - tokens + row
        scores = torch.einsum("hd,nhd->hn", query[row], keys[: position + 1]) * SCALE
        place = torch.arange(position + 1)
        expected.append(scores.softmax(-1)[:, (place < sinks) | (place >= position - window)].sum(-1))
    assert 0.0 < found[0] < 1.0
    assert found == [pytest.approx(float(torch.cat(expected).mean()), rel=1e-4)]
