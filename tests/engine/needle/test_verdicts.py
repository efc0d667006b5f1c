"""Linear reading: what transformers computes densely, where a haystack is no longer than what tokens see."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedModel

from headway.engine.needle.coding import Coder
from headway.engine.needle.evaluate import haystack
from headway.engine.needle.model import CHUNK, SINK, Needle
from headway.engine.needle.reading import answer, line_up, read
from headway.engine.needle.verdicts import TOGETHER, dense, far, load, trainable


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    return load()


@pytest.fixture(scope="module")
def ours(model: PreTrainedModel) -> Needle:
    return trainable(model)


@settings(deadline=None, max_examples=10)
@given(length=st.integers(SINK, 3 * CHUNK - 1), layer=st.integers(0, 5), seed=st.integers(0, 2**31))
def test_short_haystacks_give_the_logits_of_transformers(
    model: PreTrainedModel, ours: Needle, length: int, layer: int, seed: int
) -> None:
    draw = torch.Generator().manual_seed(seed)
    text, *questions = (torch.randint(5302, (n,), generator=draw).tolist() for n in (length, 9, 5))
    batch = line_up(length, [(question, []) for question in questions])
    with torch.inference_mode():
        logits = ours.logits(answer(ours, read(ours, torch.tensor([text]), [layer]), batch))[0]
        wholes = [torch.tensor([text + question]) for question in questions]
        expected = torch.cat([model(whole).logits[0, length:] for whole in wholes])
    torch.testing.assert_close(logits, expected, atol=2e-3, rtol=1e-3)


@pytest.mark.parametrize("task", ["many_keys", "key_value"])
def test_verdicts_behind_short_haystacks_are_equal(model: PreTrainedModel, task: str) -> None:
    coder = Coder()
    text, tails = haystack(coder, task, 380, index=0, questions=2 * TOGETHER + 3, seed=3)
    assert len(tails) > TOGETHER
    wrong = [(ask, [*wanted[:-1], coder.user]) for ask, wanted in tails]  # only the end is wrong
    expected = dense(model)(text, tails + wrong)
    assert far(model, [2])(text, tails + wrong) == expected
    assert not any(expected[len(tails) :])


@pytest.mark.parametrize("layers", [(), (6,), (2, -1)])
def test_far_layers_must_exist(model: PreTrainedModel, layers: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"far: .* allowed are 0 to 5"):
        far(model, layers)
