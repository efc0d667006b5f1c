"""Length-dependent RoPE is fixed for each sequence at its admission, whatever else is in the batch."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from headway.engine.rope import LengthRope

from .driver import Trace, drive
from .families import VOCAB, build

LENGTH_DEPENDENT = ["llama-dynamic", "llama-longrope", "phi3-longrope", "gemma3-longrope"]
ORIGINAL_LENGTH = 64
ANSWER = 10


def prompt(length: int) -> list[int]:
    return torch.randint(VOCAB, (length,), generator=torch.Generator().manual_seed(length)).tolist()


def assert_same(trace: Trace, other: Trace) -> None:
    assert trace.tokens == other.tokens
    torch.testing.assert_close(torch.stack(trace.logits), torch.stack(other.logits), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("family", LENGTH_DEPENDENT)
def test_a_short_sequence_does_not_feel_a_long_neighbour(load_family, family):
    loaded = load_family(family)
    (alone,) = drive(loaded, [prompt(20)], ANSWER)
    (long_alone,) = drive(loaded, [prompt(150)], ANSWER, largest_chunk=64)
    beside = drive(loaded, [prompt(20), prompt(150)], ANSWER, largest_chunk=64)
    assert_same(beside[0], alone)
    assert_same(beside[1], long_alone)


@pytest.mark.parametrize("family", LENGTH_DEPENDENT)
@pytest.mark.parametrize("length", [ORIGINAL_LENGTH - 20, ORIGINAL_LENGTH - 5, 150])
def test_equal_to_the_whole_length_at_once(family, length, load_family):
    """Also where the original length is crossed in mid-answer, where Hugging Face's own cache is inexact."""
    loaded = load_family(family)
    (trace,) = drive(loaded, [prompt(length)], ANSWER, largest_chunk=64)
    tokens = prompt(length) + trace.tokens
    with torch.inference_mode():
        # A fresh model: the dynamic rotary embedding remembers the longest input that it has seen.
        logits = build(family)(torch.tensor([tokens]), use_cache=False).logits[0]
    torch.testing.assert_close(torch.stack(trace.logits), logits[length - 1 : -1], atol=2e-4, rtol=1e-4)


@pytest.mark.parametrize("family", LENGTH_DEPENDENT)
def test_the_length_matters_at_all(load_family, family):
    """Otherwise the tests above could not fail."""
    loaded = load_family(family)
    (short,) = drive(loaded, [prompt(40)], 5)
    (long,) = drive(loaded, [prompt(40)], 100, largest_chunk=40)
    assert (short.logits[0] - long.logits[0]).abs().max() > 0.1


@given(a=st.integers(1, 300), b=st.integers(1, 300))
def test_rope_keys_are_equal_exactly_when_the_frequencies_are(a, b):
    for family, model in MODELS.items():
        rope = LengthRope(model)
        same = torch.equal(_frequencies(family, a), _frequencies(family, b))
        assert (rope.rope_key(a) == rope.rope_key(b)) == same


@given(lengths=st.lists(st.integers(1, 300), min_size=1, max_size=6), sizes=st.data())
def test_groups_hold_every_row_once(lengths, sizes):
    rows, start = [], 0
    for _ in lengths:
        size = sizes.draw(st.integers(1, 5))
        rows.append(range(start, start + size))
        start += size
    for model in MODELS.values():
        rope = LengthRope(model)
        groups = rope.groups(lengths, rows)
        assert sorted(row for _, members in groups for row in members) == list(range(start))
        for length, members in groups:
            inside = [own for own, own_rows in zip(lengths, rows, strict=True) if own_rows[0] in members]
            assert length == max(inside)
            assert len({rope.rope_key(own) for own in inside}) == 1


def test_other_models_have_one_key_and_no_groups(load_family):
    for family in ("llama", "llama-yarn", "llama-llama3", "gemma3", "opt"):
        rope = load_family(family).rope
        assert rope.rope_key(1) == rope.rope_key(100_000) == b""
        assert rope.groups([5], [range(5)]) == []


MODELS = {family: build(family) for family in ("llama-dynamic", "llama-longrope")}


def _frequencies(family: str, length: int) -> torch.Tensor:
    rotary = MODELS[family].model.rotary_emb
    rotary.max_seq_len_cached = 0
    rotary(torch.zeros(1), torch.tensor([[length - 1]]))
    return rotary.inv_freq.clone()
