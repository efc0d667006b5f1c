"""moba: the means, and the heads that share a list."""

import pytest
import torch

from headway.engine.errors import ConfigError
from headway.engine.methods.decode.moba import Method, Settings

from .driver import PAGE_SIZE, make
from .layers import DIM, GROUP, HEADS, KV_HEADS, Layers, always, best, randn, units

SINKS, WINDOW, BUDGET, LENGTH = 3, 10, 48, 117


@pytest.mark.parametrize("reduce", ["none", "max", "mean"])
@pytest.mark.parametrize("unit", [4, 8, 64])
def test_the_units_with_the_best_means_are_read(reduce, unit):
    settings = Settings(sink_size=SINKS, window_size=WINDOW, budget=BUDGET, unit=unit, reduce=reduce)
    keys, query = randn(1, LENGTH, KV_HEADS, DIM), randn(HEADS, DIM, seed=1)
    (selection,) = Layers(Method(settings), [keys], chunk=5).step(query[None, None])
    size = min(unit, PAGE_SIZE)
    means = torch.stack([part.mean(0) for part in keys[0].double().split(size)])
    scores = torch.einsum("uhd,hd->hu", means.repeat_interleave(GROUP, 1), query.double())
    if reduce != "none":
        scores = scores.view(KV_HEADS, GROUP, -1)
        scores = scores.amax(1) if reduce == "max" else scores.mean(1)
    forced = always(LENGTH, SINKS, WINDOW, size)
    assert selection.unit == size
    assert units(selection) == [best(each, BUDGET // size, forced) for each in scores]


def test_a_unit_that_is_no_part_of_a_page_is_refused(gqa):
    with pytest.raises(ConfigError, match=r"divide cache\.page_size = 8, not 3"):
        make("moba", gqa, unit=3)
