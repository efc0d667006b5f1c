"""Windows are read from what the mask function shows, whatever its form."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers.masking_utils import (
    bidirectional_mask_function,
    causal_mask_function,
    chunked_causal_mask_function,
    sliding_window_causal_mask_function,
)

from headway.engine.errors import ModelRefused
from headway.engine.masks import MaskProbe


def window_of(mask_function, longest: int) -> int | None:
    probe = MaskProbe()
    mask = probe.build(mask_function=mask_function, q_length=4, kv_length=4)
    return probe.window(0, mask[:, :, :, :4], longest)


@given(window=st.integers(1, 300), longest=st.integers(1, 300))
def test_a_window_is_found_unless_it_never_binds(window, longest):
    found = window_of(sliding_window_causal_mask_function(window), longest)
    assert found == (window if window < longest else None)


@given(longest=st.integers(1, 300))
def test_a_causal_mask_has_no_window(longest):
    assert window_of(causal_mask_function, longest) is None


@given(chunk=st.integers(2, 200), longest=st.integers(3, 300))
def test_chunks_are_never_taken_for_windows(chunk, longest):
    function = chunked_causal_mask_function(chunk, torch.zeros(1, dtype=torch.long))
    if chunk >= longest:
        assert window_of(function, longest) is None
        return
    with pytest.raises(ModelRefused, match="chunked"):
        window_of(function, longest)


def test_bidirectional_attention_is_refused():
    with pytest.raises(ModelRefused, match="bidirectional"):
        window_of(bidirectional_mask_function, 64)


def test_an_unknown_mask_is_refused():
    with pytest.raises(ModelRefused, match="layer 3 makes its own"):
        MaskProbe().window(3, torch.ones(1, 1, 4, 4), 64)
    with pytest.raises(ModelRefused, match="layer 3 makes its own"):
        MaskProbe().window(3, None, 64)
