"""What the prefix cache finds again, what it must not share, and in which order it gives pages up."""

import pytest

from headway.engine.pages import PageAllocator
from headway.engine.prefix_cache import PrefixCache, root_digest
from headway.engine.request import Sequence

from .hash_runner import PREFILL, alone, answers, finish, first_event, make_engine, make_submit

PAGE = 4
DOCUMENT = [(7 * i + 3) % 32 for i in range(40)]


def make_cache(num_pages: int = 8) -> PrefixCache:
    return PrefixCache(PageAllocator(num_pages), PAGE, lambda s: root_digest(s.submit.cache_salt.encode()))


def make_sequence(prompt: list[int], prefill: str | None = None, **options: object) -> Sequence:
    sequence = Sequence(make_submit("r", prompt, prefill=prefill, **options), list(prompt), 1, rope_length=0)
    if prefill is not None:
        sequence.prefill, sequence.granule = PREFILL[prefill], PREFILL[prefill].granule
    return sequence


def computed(cache: PrefixCache, prompt: list[int], **options: object) -> Sequence:
    """A sequence all of whose tokens are in its pages."""
    sequence = make_sequence(prompt, **options)
    cache.extend_chain(sequence)
    cache.admit(sequence)
    sequence.computed = len(prompt)
    cache.advance(sequence)
    return sequence


@pytest.mark.parametrize(
    "length", [1, PAGE - 1, PAGE, PAGE + 1, 2 * PAGE, 5 * PAGE - 1, 5 * PAGE, 5 * PAGE + 1]
)
@pytest.mark.parametrize("longer", [0, 1, 9])
def test_full_pages_but_the_last_tokens_one_are_found_again(length: int, longer: int) -> None:
    engine, _ = make_engine()
    engine.submit(make_submit("first", DOCUMENT[:length]))
    finish(engine)
    again = make_submit("again", DOCUMENT[:length] + [1] * longer, max_tokens=5)
    engine.submit(again)
    events = finish(engine)
    shareable = length if longer else length - 1
    assert first_event(events, "again").cached_tokens == shareable // PAGE * PAGE
    assert answers(events)["again"] == alone(again, 5)


def test_generated_tokens_are_found_again_in_the_next_turn() -> None:
    engine, _ = make_engine()
    first = make_submit("first", DOCUMENT[:6], max_tokens=7)
    engine.submit(first)
    answer = answers(finish(engine))["first"]
    engine.submit(make_submit("next", DOCUMENT[:6] + answer + [5, 6]))
    # the last token was sampled but never computed: twelve of the thirteen fill three pages
    assert first_event(finish(engine), "next").cached_tokens == 12


@pytest.mark.parametrize("prefill", ["local", "wide", "cells"])
@pytest.mark.parametrize("length", [4, 5, 10, 11, 12, 27, 32, 35, 40])
@pytest.mark.parametrize("longer", [0, 1, 9])
def test_whole_granules_before_the_tail_are_found_again(prefill: str, length: int, longer: int) -> None:
    engine, _ = make_engine()
    engine.submit(make_submit("first", DOCUMENT[:length], prefill=prefill))
    finish(engine)
    again = make_submit("again", DOCUMENT[:length] + [1] * longer, max_tokens=5, prefill=prefill)
    engine.submit(again)
    events = finish(engine)
    method = PREFILL[prefill]
    shareable = length - method.settings.dense_tail
    if length > 4:  # the others are dense
        assert first_event(events, "again").cached_tokens == shareable // method.granule * method.granule
    assert answers(events)["again"] == alone(again, 5)


def test_dense_beginnings_are_shared_with_dense_prompts_only() -> None:
    engine, _ = make_engine()
    cached = []
    for name, length, prefill in (("a", 4, "local"), ("b", 9, None), ("c", 9, "local"), ("d", 9, "wide")):
        engine.submit(make_submit(name, DOCUMENT[:length], prefill=prefill))
        cached.append(first_event(finish(engine), name).cached_tokens)
    assert cached == [0, 4, 0, 0]


@pytest.mark.parametrize("prefill", ["local", "wide"])
def test_answers_to_selected_prompts_are_not_shared(prefill: str) -> None:
    engine, _ = make_engine()
    first = make_submit("first", DOCUMENT[:16], max_tokens=12, prefill=prefill)
    engine.submit(first)
    answer = answers(finish(engine))["first"]
    again = make_submit("next", DOCUMENT[:16] + answer + [5, 6], max_tokens=3, prefill=prefill)
    engine.submit(again)
    events = finish(engine)
    assert (
        first_event(events, "next").cached_tokens == 13 // PREFILL[prefill].granule * PREFILL[prefill].granule
    )
    assert answers(events)["next"] == alone(again, 3)


def test_of_a_granule_that_is_cached_in_part_nothing_is_shared() -> None:
    cache = make_cache(num_pages=10)
    granular = computed(cache, [1] * 30, prefill="wide")
    pages = list(granular.pages)
    cache.release(granular)
    cache.check([])
    assert _hits(cache, [1] * 30, prefill="wide") == 6
    cache._pool.give_up(pages[5])
    assert _hits(cache, [1] * 30, prefill="wide") == 4
    assert _hits(cache, [1] * 18, prefill="wide") == 2  # its own tail begins at 15


def test_tenants_share_nothing() -> None:
    engine, _ = make_engine()
    for name, salt in (("a", ""), ("b", "tenant"), ("c", "tenant2")):
        engine.submit(make_submit(name, DOCUMENT[:17], salt=salt))
        assert first_event(finish(engine), name).cached_tokens == 0
    engine.submit(make_submit("e", DOCUMENT[:17], salt="tenant"))
    assert first_event(finish(engine), "e").cached_tokens == 16


def test_roots_differ_whenever_any_part_does() -> None:
    assert root_digest(b"ab", b"c") != root_digest(b"a", b"bc")
    assert root_digest(b"a", b"") != root_digest(b"a")
    assert root_digest(b"a", b"b") == root_digest(b"a", b"b")


def test_a_page_is_known_by_all_that_is_before_it() -> None:
    cache = make_cache()
    cache.release(computed(cache, [1, 1, 1, 1, 2, 2, 2, 2]))
    other = Sequence(make_submit("r", [3, 3, 3, 3, 2, 2, 2, 2, 9]), [3, 3, 3, 3, 2, 2, 2, 2, 9], 1, 0)
    cache.extend_chain(other)
    assert cache.next_shareable(other)[0] == 0


def test_the_least_recently_used_document_goes_first_and_its_tail_before_its_head() -> None:
    cache = make_cache(num_pages=6)
    old, recent = [1] * 9, [2] * 9
    for prompt in (old, recent):
        cache.release(computed(cache, prompt))
    assert (cache.free, cache.idle) == (2, 4)
    hits = []
    for taken in range(3, 7):
        filler = computed(cache, list(range(4 * taken - 1)), salt=str(taken))
        hits.append([_hits(cache, prompt) for prompt in (old, recent)])
        cache.release(filler)
        cache.check([])
        # make the filler's pages the first to go next time
        for page in [page for page in list(cache._pool._idle) if page not in _pages(cache, old, recent)]:
            cache._pool._idle.move_to_end(page, last=False)
    assert hits == [[1, 2], [0, 2], [0, 1], [0, 0]]


def _hits(cache: PrefixCache, prompt: list[int], prefill: str | None = None) -> int:
    sequence = make_sequence(prompt, prefill)
    cache.extend_chain(sequence)
    return cache.next_shareable(sequence)[0]


def _pages(cache: PrefixCache, *prompts: list[int]) -> set[int]:
    pages = set()
    for prompt in prompts:
        sequence = Sequence(make_submit("r", prompt), list(prompt), 1, rope_length=0)
        cache.extend_chain(sequence)
        pages |= {page for digest in sequence.digests for page in cache._pool._pages_of.get(digest, [])}
    return pages


@pytest.mark.parametrize("first_to_end", [0, 1])
def test_two_that_compute_the_same_pages_keep_their_own(first_to_end: int) -> None:
    """The duplicate must neither be freed under its holder nor stay behind (mini-sglang#142)."""
    cache = make_cache()
    both = [computed(cache, [1] * 9, prompt_logprobs=0) for _ in range(2)]
    assert not set(both[0].pages) & set(both[1].pages)
    cache.check(both)
    kept = both.pop(first_to_end)
    (other,) = both
    cache.release(kept)
    cache.check([other])
    assert (cache.used, cache.idle, cache.free) == (3, 0, 5)
    cache.release(other)
    cache.check([])
    assert (cache.used, cache.idle, cache.free) == (0, 2, 6)
    assert _hits(cache, [1] * 9) == 2


def test_a_recomputed_page_replaces_the_idle_one() -> None:
    cache = make_cache()
    cache.release(computed(cache, [1] * 9))
    again = computed(cache, [1] * 9, prompt_logprobs=0)
    cache.check([again])
    assert (cache.used, cache.idle) == (3, 0)


def test_without_a_prefix_cache_nothing_stays() -> None:
    engine, _ = make_engine(prefix_cache=False)
    for name in ("a", "b"):
        engine.submit(make_submit(name, DOCUMENT[:17]))
        assert first_event(finish(engine), name).cached_tokens == 0
    assert engine.stats().pages_free == engine.stats().pages_total


def test_check_sees_a_page_that_was_lost_or_given_twice() -> None:
    cache = make_cache()
    sequence = computed(cache, [1] * 9)
    with pytest.raises(RuntimeError, match="reference counts"):
        cache.check([])
    page = sequence.pages.pop()
    with pytest.raises(RuntimeError, match="reference counts"):
        cache.check([sequence])
    sequence.pages.append(page)
    cache._pool._allocator.give_back(page)
    with pytest.raises(RuntimeError, match="distinct pages"):
        cache.check([sequence])


def test_a_prompt_lies_side_by_side_even_where_others_are_evicted_for_it() -> None:
    cache = make_cache(num_pages=8)
    cache.release(computed(cache, DOCUMENT[:32]))
    assert cache.idle == 8
    later = make_sequence([3] * 20)
    cache.extend_chain(later)
    cache.admit(later)
    first = later.pages[0]
    assert later.pages == list(range(first, first + 5))


def test_answers_lie_behind_their_prompts_although_they_grow_by_turns() -> None:
    cache = make_cache(num_pages=16)
    both = [make_sequence(DOCUMENT[start : start + 7], max_tokens=8) for start in (0, 9)]
    for sequence in both:
        sequence.max_tokens = 8
        cache.extend_chain(sequence)
        cache.admit(sequence)
    for _ in range(2):
        for sequence in both:
            cache.grow(sequence)
    assert [sequence.pages for sequence in both] == [[0, 1, 2, 3], [4, 5, 6, 7]]
    for sequence in both:
        cache.release(sequence)
    cache.check([])
