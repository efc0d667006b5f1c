"""log_mass against the softmax written out in fp64."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from headway.engine.selection.mass import FLOOR, log_mass

from .layers import randn


@settings(max_examples=40, deadline=None)
@given(
    heads=st.sampled_from([1, 2, 4, 8]),
    reduce=st.sampled_from(["sum", "max"]),
    spread=st.sampled_from([0.1, 3.0, 30.0]),
    with_sinks=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_it_is_the_softmax_reduced_over_heads(heads, reduce, spread, with_sinks, seed):
    logits = randn(3, 8, 29, seed=seed) * spread
    logits[1, :, 20:] = -torch.inf
    sinks = randn(8, seed=seed + 1) * spread if with_sinks else None
    extra = torch.full((3, 8, 1), -torch.inf) if sinks is None else sinks.view(1, 8, 1).expand(3, 8, 1)
    shares = torch.cat((logits, extra), -1).double().softmax(-1)[..., :-1].view(3, heads, 8 // heads, 29)
    expected = (shares.sum(2) if reduce == "sum" else shares.amax(2)).log()
    if reduce == "sum":
        expected = expected.clamp_min(FLOOR)
        expected[1, :, 20:] = -torch.inf
    mass = log_mass(logits.clone(), heads, reduce, sinks)
    likely = expected > -80
    torch.testing.assert_close(mass[likely], expected[likely].float(), atol=1e-3, rtol=1e-4)
    assert torch.equal(mass.isneginf(), logits.view(3, heads, -1, 29)[:, :, 0].isneginf())


def test_nothing_with_a_logit_is_lost_to_underflow():
    logits = torch.tensor([[[0.0, -500.0, -1000.0, -torch.inf]]])
    assert log_mass(logits, 1, "sum").isfinite().tolist() == [[[True, True, True, False]]]


def test_a_row_without_any_logit_has_no_mass():
    assert log_mass(torch.full((1, 2, 3), -torch.inf), 1, "sum").isneginf().all()
