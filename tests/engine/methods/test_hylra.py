"""hylra: full layers, what they hand on, and which policies are refused."""

import json

import pytest
import torch

from headway.engine.errors import ConfigError, RequestError
from headway.engine.methods.decode.hylra import Method, Settings
from headway.engine.offers import Offers
from headway.engine.recipe import RecipeConfig

from .driver import PAGE_SIZE, Job, assert_same, drive, make, prompt
from .layers import DIM, GROUP, HEADS, KV_HEADS, Layers, always, best, randn, spec, units

SINKS, WINDOW, BUDGET, LENGTH = 3, 10, 30, 120


def method(**wanted):
    base = {"dense_below": 0, "sink_size": SINKS, "window_size": WINDOW, "budget": BUDGET}
    return Method(Settings(**base | wanted))


def shares(keys, query):
    """Attention of each query head, fp64 [Hq, tokens]."""
    rows = keys.double().repeat_interleave(GROUP, 1)
    return torch.einsum("thd,hd->ht", rows, query.double() * 0.25).softmax(-1)


@pytest.mark.parametrize("reduce", ["max", "sum"])
def test_a_full_layer_reads_all_and_hands_on_what_got_most_attention(reduce):
    keys, query = randn(2, LENGTH, KV_HEADS, DIM), randn(2, 1, HEADS, DIM, seed=1)
    full, reuse = Layers(method(full_layers=[0], reduce=reduce), [keys]).step(query)
    assert full.dense.all()
    attention = shares(keys[0], query[0, 0]).view(KV_HEADS, GROUP, LENGTH)
    mass = attention.amax(1) if reduce == "max" else attention.sum(1)
    assert units(full) == [best(each, BUDGET, always(LENGTH, SINKS, WINDOW)) for each in mass]
    assert units(reuse) == units(full)
    assert reuse.dense is None


def test_a_logit_without_a_value_weighs_a_heads_attention():
    keys, query = randn(1, LENGTH, KV_HEADS, DIM), randn(1, 1, HEADS, DIM, seed=1)
    sinks = torch.tensor([20.0, -20.0] * KV_HEADS)
    (full,) = Layers(method(full_layers=[0]), [keys], sinks=sinks).step(query)
    heard = shares(keys[0], query[0, 0])[1::2]
    assert units(full) == [best(each, BUDGET, always(LENGTH, SINKS, WINDOW)) for each in heard]


def test_a_wrong_source_lowers_the_recall():
    """Layers 1 and 2 look at the same tokens, layer 0 at others."""
    keys, query = randn(3, LENGTH, KV_HEADS, DIM), 4 * randn(3, 1, HEADS, DIM, seed=1)
    keys[2], query[2] = keys[1] + 0.1 * randn(LENGTH, KV_HEADS, DIM, seed=2), query[1]
    attention = shares(keys[2], query[2, 0])
    recalls = []
    for full_layers in ([0, 1], [0]):
        *_, last = Layers(method(full_layers=full_layers), [keys]).step(query)
        recalls.append(sum(float(attention[head, units(last)[head // GROUP]].sum()) for head in range(HEADS)))
    right, wrong = (recall / HEADS for recall in recalls)
    assert right > 0.9
    assert wrong < right - 0.2


def test_all_layers_full_is_dense(gqa):
    chosen = make("hylra", gqa, full_layers=[0, 1])
    trace, expected = (drive(gqa, [Job(prompt(117), each)], 9)[0] for each in (chosen, None))
    assert_same(trace, expected)


def sources(specs, **wanted) -> list[int]:
    """The layer that each selecting layer's list comes from, as its selections show."""
    chosen = method(**wanted)
    chosen.check(specs, PAGE_SIZE)
    return list(chosen.sources.values())


def test_it_knows_the_layers_of_the_model_checked_last_and_a_refusal_changes_nothing():
    chosen = method(full_layers=[0])
    chosen.check([spec(i) for i in range(4)], PAGE_SIZE)
    chosen.check([spec(i) for i in range(2)], PAGE_SIZE)
    assert chosen.sources == {0: 0, 1: 0}
    with pytest.raises(ConfigError, match="layer 2 must be one of them"):
        chosen.check([spec(i, num_kv_heads=1 if i > 1 else 2) for i in range(4)], PAGE_SIZE)
    assert chosen.sources == {0: 0, 1: 0}


def test_the_default_policy_is_the_first_two_and_every_fourth():
    assert sources([spec(i) for i in range(12)]) == [0, 1, 1, 1, 1, 5, 5, 5, 5, 9, 9, 9]


def test_windowed_and_dense_layers_do_not_count():
    specs = [spec(i, window=8 if i % 2 else None) for i in range(14)]
    assert sources(specs) == [0, 2, 2, 2, 2, 10, 10]
    assert sources([spec(i) for i in range(6)], dense_layers=2) == [2, 3, 3, 3]


def test_a_list_never_goes_to_a_layer_of_other_heads():
    specs = [spec(i, num_kv_heads=1 if i > 3 else 2) for i in range(8)]
    assert sources(specs) == [0, 1, 1, 1, 4, 5, 5, 5]


def test_a_policy_comes_from_a_file(tmp_path):
    path = tmp_path / "policy.json"
    path.write_text(json.dumps({"full_layers": [0, 3]}))
    assert sources([spec(i) for i in range(5)], policy=str(path)) == [0, 0, 0, 3, 3]


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ({"full_layers": [1]}, "layer 0 must be one of them"),
        ({"full_layers": [0, 4]}, r"full_layers: \[4\] .* the others are \[0, 1, 2\]"),
        ({"full_layers": [0], "dense_layers": 1}, r"\[0\] read everything anyway"),
        ({"policy": "/nowhere.json"}, "policy: /nowhere.json"),
    ],
)
def test_a_policy_that_does_not_fit_is_refused(wanted, message):
    with pytest.raises(ConfigError, match=message):
        sources([spec(i, num_kv_heads=2) for i in range(3)], **wanted)


@pytest.mark.parametrize("content", ["[0, 1]", '{"full": [0]}', '{"full_layers": [-1]}', "{"])
def test_a_file_that_holds_no_policy_is_refused(tmp_path, content):
    path = tmp_path / "policy.json"
    path.write_text(content)
    with pytest.raises(ConfigError, match="policy"):
        sources([spec(0)], policy=str(path))


def test_both_kinds_of_policy_are_refused():
    with pytest.raises(ValueError, match="either full_layers or policy"):
        method(full_layers=[0], policy="policy.json")


def test_a_request_cannot_name_a_file():
    offers = Offers(RecipeConfig(decode={"method": "hylra"}))
    with pytest.raises(RequestError, match="policy"):
        offers.settings({"policy": "/etc/passwd"}, None)
