"""A haystack that is read once gives what one pass over haystack and question gives."""

from random import Random

import pytest
import torch

from headway.engine.needle.coding import Coder
from headway.engine.needle.mix import LENGTHS, MIXES, Batch, Mix
from headway.engine.needle.model import CHUNK, SINK, Needle, Shape
from headway.engine.needle.reading import END, answer, read, reading


@pytest.mark.parametrize("jump", [0, 5000])
@pytest.mark.parametrize("far", [(0, 1), (0,), (1,)])
def test_questions_behind_a_read_haystack_equal_one_dense_pass(far: tuple[int, ...], jump: int) -> None:
    model = Needle(Shape(vocab_size=60, hidden_size=64, intermediate_size=32, num_hidden_layers=2))
    haystack = torch.randint(60, (1, 2 * CHUNK))  # short enough for its surroundings to be all of it
    questions = [torch.randint(60, (length,)) for length in (7, 12)]
    n = haystack.shape[1]
    ids = torch.cat(questions)[None]
    places = torch.arange(n) + jump * (torch.arange(n) > n // 3)
    positions = torch.cat([jump + n + torch.arange(len(question)) for question in questions])[None]
    batch = Batch(ids, positions, torch.full_like(ids, -1), [])
    together = answer(model, read(model, haystack, far, places), batch)
    offset = 0
    for question in questions:
        whole = torch.cat((haystack[0], question))[None]
        own = jump + n + torch.arange(len(question))
        alone = model(whole, torch.cat((places, own))[None])[:, n:]
        part = together[:, offset : offset + len(question)]
        torch.testing.assert_close(part, alone, atol=1e-5, rtol=1e-4)
        offset += len(question)


def test_only_far_layers_see_the_middle_and_gradients_reach_it() -> None:
    model = Needle(Shape(vocab_size=60, hidden_size=64, intermediate_size=32, num_hidden_layers=3))
    haystack = torch.randint(60, (1, 2048))
    kept = read(model, haystack, (1,))
    assert [k.shape[2] for k, _ in kept] == [SINK + END, 2048, SINK + END]
    kept[1][0][:, :, 700].sum().backward()
    assert model.layers[0].mlp.down_proj.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("mix", MIXES.values(), ids=MIXES)
@pytest.mark.parametrize("skips", [0.0, 1.0])
def test_every_answer_of_a_reading_stands_behind_its_own_question(mix: Mix, skips: float) -> None:
    coder = Coder()
    drawn = reading(Random(5), coder, 8192, 600, mix, skips)
    batch = drawn.questions
    assert 6000 < drawn.ids.shape[1] <= 8192
    assert batch.ids.shape[1] <= 600
    assert batch.ids.shape == batch.positions.shape == batch.answer.shape
    assert batch.answer.max() == len(batch.families) - 1 > 1
    assert (batch.positions[0] == drawn.positions[-1] + 1).sum() == len(batch.families)
    assert drawn.positions.shape == drawn.ids[0].shape
    assert (drawn.positions.diff() > 1).any() == (skips > 0)
    ends = batch.ids[0][batch.answer[0] >= 0]
    assert (ends == coder.end).sum() == len(batch.families)


def test_each_mix_has_a_share_for_every_length() -> None:
    assert {len(mix.shares) for mix in MIXES.values()} == {len(LENGTHS)}
