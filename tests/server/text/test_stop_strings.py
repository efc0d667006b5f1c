"""Stop strings against a brute-force search."""

from itertools import pairwise

from hypothesis import example, given
from hypothesis import strategies as st

from headway.server.stop_strings import StopStrings

letters = st.text("ab\n", max_size=30)
stops = st.lists(st.text("ab\n", min_size=1, max_size=6), max_size=4)


def pieces(text: str, cuts: list[int]) -> list[str]:
    borders = [0, *sorted(cut % (len(text) + 1) for cut in cuts), len(text)]
    return [text[start:end] for start, end in pairwise(borders)]


def expected(text: str, stops: list[str], include: bool) -> tuple[str, str | None]:
    for end in range(len(text) + 1):
        for stop in sorted(stops, key=len, reverse=True):
            if text[:end].endswith(stop):
                return (text[:end] if include else text[: end - len(stop)]), stop
    return text, None


@given(text=letters, stops=stops, cuts=st.lists(st.integers(0, 30)), include=st.booleans())
@example(text="aab", stops=["aab", "b"], cuts=[1, 2], include=False)
@example(text="aaab", stops=["aab"], cuts=[1, 2, 3], include=False)
def test_equals_a_search_wherever_the_borders_are(text, stops, cuts, include):
    watch = StopStrings(stops, include)
    certain = ""
    wanted, stop = expected(text, stops, include)
    for piece in pieces(text, cuts):
        certain += watch.push(piece)
        assert wanted.startswith(certain)
    assert certain + watch.flush() == wanted
    assert watch.stop == stop


@given(text=letters, stops=stops.filter(bool))
def test_holds_back_only_what_may_become_a_stop_string(text, stops):
    watch = StopStrings(stops)
    certain = watch.push(text)
    if watch.stop is None:
        held = text[len(certain) :]
        assert len(held) < max(map(len, stops))
        assert held == "" or any(stop.startswith(held) for stop in stops)


def test_nothing_follows_a_stop_string():
    watch = StopStrings(["END"])
    assert watch.push("the EN") == "the "
    assert watch.push("D and more") == ""
    assert watch.push("still more") == ""
    assert watch.flush() == ""


def test_characters_are_not_bytes():
    watch = StopStrings(["終わり", "👩‍👩‍👧"])
    assert watch.push("物語の終") == "物語の"
    assert watch.push("点👩‍👩") == "終点"
    assert watch.push("‍👧!") == ""
    assert watch.stop == "👩‍👩‍👧"


def test_long_stop_strings_cost_no_more_than_short_ones():
    watch = StopStrings(["a" * 100_000 + "b"])
    assert watch.push("a" * 300_000) == "a" * 200_000
