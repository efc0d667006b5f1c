"""retrieval: the copy criterion, and needle's heads."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from headway.engine.config import ModelConfig
from headway.engine.errors import HeadwayError
from headway.engine.loading import load
from headway.engine.profile import artefact
from headway.engine.profile.attention_rows import row_logits
from headway.engine.profile.haystacks import Question, maker
from headway.engine.profile.pictures import png
from headway.engine.profile.progress import Silent
from headway.engine.profile.retrieval import Settings, copied, picture, run, scores
from headway.engine.profile.watched_run import WatchedRun

from .readable import readable

values = st.lists(st.integers(0, 9), min_size=1, max_size=6)
answers = st.tuples(values, st.integers(0, 20)).map(
    lambda given: Question([], given[0], range(given[1], given[1] + len(given[0])))
)


@given(answers)
def test_a_head_that_copies_scores_one(question):
    looked = torch.tensor(question.places)[:, None].expand(-1, 3)
    assert copied(looked, torch.tensor(question.answer), question).tolist() == [1.0] * 3


@given(answers, st.randoms())
def test_a_head_that_looks_at_other_tokens_of_the_value_scores_zero(question, random):
    places = list(question.places)
    random.shuffle(places)
    wrong = [
        place if question.answer[place - question.places.start] != token else question.places.stop
        for place, token in zip(places, question.answer, strict=True)
    ]
    assert copied(torch.tensor(wrong)[:, None], torch.tensor(question.answer), question).tolist() == [0.0]


@given(answers, st.data())
def test_scores_are_shares_of_the_places_hit(question, data):
    steps = len(question.answer)
    looked = data.draw(st.lists(st.integers(0, 27), min_size=steps, max_size=steps))
    written = data.draw(st.lists(st.integers(0, 9), min_size=steps, max_size=steps))
    hit = {
        place
        for place, token in zip(looked, written, strict=True)
        if place in question.places and question.answer[place - question.places.start] == token
    }
    found = copied(torch.tensor(looked)[:, None], torch.tensor(written), question)
    assert found.item() == pytest.approx(len(hit) / steps)


def test_a_repeated_look_counts_once():
    question = Question([], [7, 7], range(3, 5))
    assert copied(torch.tensor([[3], [3]]), torch.tensor([7, 7]), question).item() == 0.5


@given(st.integers(1, 3), st.integers(1, 3), st.integers(0, 30), st.integers(0, 2**32))
def test_queries_that_seek_their_answer_find_it_among_the_keys(kv_heads, group, start, seed):
    """A copy head from its queries and keys on, with a decoy that only a window hides."""
    generator = torch.Generator().manual_seed(seed)
    question = Question([], [5, 6, 8], range(start, start + 3))
    length = start + 10
    keys = torch.randn(length, kv_heads, 16, generator=generator)
    keys = keys / keys.norm(dim=-1, keepdim=True)
    query = keys[question.places.start : question.places.stop].repeat_interleave(group, 1) * 9
    spec = SimpleNamespace(num_kv_heads=kv_heads, key_dim=16, scale=1.0, softcap=None, window=None)
    looked = row_logits(spec, query, keys).argmax(-1)
    assert copied(looked, torch.tensor(question.answer), question).eq(1).all()
    spec.window = 5
    looked = row_logits(spec, query, keys).argmax(-1)
    assert copied(looked, torch.tensor(question.answer), question).eq(0).all()


def test_a_model_that_answers_nothing_is_refused(tmp_path):
    loaded = readable("llama", tmp_path)
    settings = Settings(lengths=(256,), seeds=(7,), haystacks=1, questions=2)
    with pytest.raises(HeadwayError, match="answered no question of seed 7 at the lengths 256"):
        run(loaded, settings, Silent())


@pytest.fixture(scope="module")
def needle():
    return load(ModelConfig(name="needle", threads=1))


PROFILES = Path(__file__).parents[3] / "configs" / "profiles" / "needle"
SMALL = Settings(lengths=(512,), seeds=(1, 2), haystacks=3, questions=4)


@pytest.fixture(scope="module")
def profile(needle):
    return run(needle, SMALL, Silent())


def test_silencing_needles_retrieval_heads_breaks_it_and_others_do_not(profile):
    nothing, best, *others = profile.facts.findings["silenced"]
    assert len(best["heads"]) >= 3
    assert nothing["exact"] >= 0.9
    assert best["exact"] <= 0.1
    assert 1 <= len(others) <= SMALL.draws
    assert not any(head in best["heads"] for other in others for head in other["heads"])
    assert all(other["heads"] and other["exact"] >= 0.8 for other in others)
    assert {layer for layer, _ in best["heads"]} >= {layer for other in others for layer, _ in other["heads"]}


def test_the_profile_holds_what_it_says(needle, profile):
    query_heads, by_seed = profile.tensors["query_heads"], profile.tensors["by_seed"]
    assert query_heads.shape == (6, 8)
    torch.testing.assert_close(by_seed.mean(0), query_heads)
    assert torch.equal(profile.tensors["kv_heads"], query_heads.view(6, 2, 4).amax(-1))
    assert 0 <= query_heads.min() <= query_heads.max() <= 1
    assert 0 < profile.facts.findings["answered"] <= profile.facts.findings["questions"]
    assert -1 <= profile.facts.findings["rank_correlation_over_seeds"] <= 1
    assert png(picture(profile)).startswith(b"\x89PNG")
    profile.check(needle)


def test_equal_settings_give_equal_profiles(needle):
    settings = Settings(lengths=(256,), seeds=(3,), haystacks=2, questions=2)
    first, second = run(needle, settings, Silent()), run(needle, settings, Silent())
    assert first.facts == second.facts
    assert all(torch.equal(first.tensors[name], second.tensors[name]) for name in first.tensors)


def test_answers_below_the_recall_do_not_count(needle):
    text = maker(needle)(512, 1, 4, 1)
    with WatchedRun(needle, 512) as read:
        assert len(scores(read, needle.specs, text, 0.5)) == len(text.questions)
        assert scores(read, needle.specs, text, 1.0) == []


@pytest.mark.slow
def test_needles_own_profile_is_what_the_command_makes(needle):
    committed = artefact.load(PROFILES / "retrieval")
    again = run(needle, Settings(**committed.facts.settings), Silent())
    for name, values in committed.tensors.items():
        torch.testing.assert_close(again.tensors[name], values, atol=0.05, rtol=0)
