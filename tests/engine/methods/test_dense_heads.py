"""Selections of which some KV heads read everything: those heads do, the others read their lists."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from headway.engine.selection import group
from headway.engine.selection.decode_selection import DecodeSelection
from headway.engine.selection.layer_view import LayerView
from headway.kernels.selected_attention.reference import selected_attention

from .driver import PAGE_SIZE, lone_layer

KV_HEADS, HEADS, DIM = 3, 6, 8
LISTED = [0, 1, 2, 20, 21, 22]


def expected(query: Tensor, layer: LayerView, lists: Tensor, dense: Tensor) -> tuple[Tensor, Tensor]:
    """Both ways for all heads by the specification, then whichever each head wants."""
    spec = layer.spec
    longest = max(layer.plan.host_kv_lens)
    (whole, whole_lse), (out, lse) = (
        selected_attention(
            query, layer.key_cache, layer.value_cache, layer.plan, each, 1,
            spec.scale, None, spec.sinks, None, None, None,
        )
        for each in (torch.arange(longest).expand(len(query), 1, -1), lists)
    )  # fmt: skip
    dense = dense.repeat_interleave(HEADS // dense.shape[1], 1)
    return torch.where(dense.unsqueeze(2), whole, out), torch.where(dense, whole_lse, lse)


@settings(deadline=None)
@given(st.lists(st.lists(st.booleans(), min_size=3, max_size=3), min_size=1, max_size=3), st.booleans())
def test_some_heads_of_some_sequences_read_everything(marks, sinks):
    dense = torch.tensor(marks)
    lengths = [30, 77, 41][: len(marks)]
    layer = lone_layer(
        lengths, num_heads=HEADS, num_kv_heads=KV_HEADS, dim=DIM, sinks=torch.randn(HEADS) if sinks else None
    )
    query = torch.randn(len(marks), HEADS, DIM)
    lists = torch.tensor(LISTED, dtype=torch.int32).expand(len(marks), 1, -1).contiguous()
    found = group.attend_selected(query, layer, DecodeSelection(lists, 1, dense=dense))
    for ours, theirs in zip(found, expected(query, layer, lists, dense), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("lists", [1, KV_HEADS])
def test_the_way_that_asks_the_device_nothing_comes_to_the_same(lists):
    """What a GPU does; here over whole pages of equally long sequences, since a CPU refuses pages beyond."""
    dense = torch.tensor([[True, False, True], [False, False, False], [True, True, True]])
    layer = lone_layer([4 * PAGE_SIZE] * 3, num_heads=HEADS, num_kv_heads=KV_HEADS, dim=DIM)
    query = torch.randn(3, HEADS, DIM)
    tokens = torch.tensor(LISTED, dtype=torch.int32).expand(3, lists, -1).contiguous()
    selection = DecodeSelection(tokens, 1, dense=dense)
    found = group._either(query, layer, selection, dense, torch.arange(4, dtype=torch.int32))
    for ours, theirs in zip(found, expected(query, layer, tokens, dense), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
