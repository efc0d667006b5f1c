"""streaming: what is between sinks and window does not matter, and where the sinks seem to stand."""

import pytest
import torch

from headway.engine.errors import ConfigError
from headway.engine.rotation import Rotation

from .driver import lone_layer, make, tokens_of

LENGTHS = [100, 9, 14, 57]
"""Two beyond 3 sinks and a window of 10, one below, one that just reaches it."""


def attended(method, query, layer):
    own = method.attend(query, layer, method.select(query, layer))
    assert own is not None
    return own


@pytest.mark.parametrize("sink_size", [0, 3])
@pytest.mark.parametrize("softcap", [None, 2.0])
@pytest.mark.parametrize("logits", [None, torch.tensor([0.5, -1.0, 2.0, 0.0])])
@pytest.mark.parametrize(("style", "last", "pairs"), [("half", False, 4), ("interleaved", True, 3)])
def test_compact_positions_are_those_of_the_kept_tokens_alone(
    style, last, pairs, logits, softcap, sink_size, gqa
):
    """Oracle: rotate plain keys by their place in the list, the query by the last one, and attend."""
    frequencies = torch.tensor([1.0, 0.3, 0.05, 0.001])[:pairs]
    rotation = Rotation(style, last, frequencies)
    layer = lone_layer(LENGTHS, softcap=softcap, sinks=logits, rotation=rotation)
    method = make("streaming", gqa, positions="compact", sink_size=sink_size)
    plain_query = torch.randn(len(LENGTHS), 4, 8)
    plain_keys = layer.key_cache.clone()
    for row in range(len(LENGTHS)):
        table = layer.plan.block_table[row].long()
        for page, number in enumerate(table.tolist()[: -(-LENGTHS[row] // 8)]):
            positions = torch.arange(page * 8, page * 8 + 8)
            layer.key_cache[number] = rotation.turn(plain_keys[number], positions)
    query = rotation.turn(plain_query, layer.plan.kv_lens - 1)
    selection = method.select(query, layer)
    out = method.attend(query, layer, selection)
    if sink_size == 0:
        assert out is None
        return
    for row in range(len(LENGTHS)):
        kept = selection.indices[row, 0][selection.indices[row, 0] >= 0].long()
        places = torch.arange(len(kept))
        keys = rotation.turn(tokens_of(layer, row, plain_keys)[kept], places)
        turned = rotation.turn(plain_query[row : row + 1], places[-1:])[0]
        scores = torch.einsum("hd,nhd->hn", turned, keys.repeat_interleave(2, 1)) * 8**-0.5
        if softcap is not None:
            scores = softcap * torch.tanh(scores / softcap)
        if logits is not None:
            scores = torch.cat((scores, logits.unsqueeze(1)), 1)
        weights = scores.softmax(-1)[:, : len(kept)]
        values = tokens_of(layer, row, layer.value_cache)[kept].repeat_interleave(2, 1)
        expected = torch.einsum("hn,nhd->hd", weights, values)
        torch.testing.assert_close(out[row], expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("positions", ["original", "compact"])
def test_what_it_leaves_out_does_not_matter(positions, gqa):
    layer = lone_layer(LENGTHS)
    method = make("streaming", gqa, positions=positions)
    selection = method.select(torch.randn(4, 4, 8), layer)
    for row, length in enumerate(LENGTHS):
        expected = [*range(min(3, length)), *range(max(3, length - 10), length)]
        found = selection.indices[row, 0].tolist()
        assert found == expected + [-1] * (13 - len(expected))


@pytest.mark.parametrize("family", ["llama-dynamic", "llama-longrope", "hunyuan"])
def test_a_rotation_that_cannot_be_turned_back_is_refused(family, load_family):
    with pytest.raises(ConfigError, match=r"^positions: compact .*\[0, 1\]"):
        make("streaming", load_family(family), positions="compact")
    make("streaming", load_family(family), positions="original")


@pytest.mark.parametrize("family", ["opt", "smollm3", "gpt-oss", "deepseek-v2"])
def test_other_models_are_not(family, load_family):
    make("streaming", load_family(family), positions="compact")
