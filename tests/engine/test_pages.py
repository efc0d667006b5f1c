"""Where a sequence's pages lie: side by side, as long as there is room, and never out of reach of others."""

from hypothesis import given
from hypothesis import strategies as st

from headway.engine.pages import PageAllocator


def take_all(pages: PageAllocator, begun: list[int], count: int) -> list[list[int]]:
    """Sequences that take turns, until each has `count` pages."""
    tables = [[page] for page in begun]
    for _ in range(count - 1):
        for table in tables:
            table.append(pages.take(after=table[-1]))
    return tables


def test_sequences_that_grow_by_turns_each_lie_side_by_side() -> None:
    pages = PageAllocator(20)
    tables = take_all(pages, [pages.begin(room=6).start for _ in range(3)], count=6)
    assert tables == [list(range(6)), list(range(6, 12)), list(range(12, 18))]
    pages.check(tables, ())


def test_a_sequence_of_a_few_pages_fits_between_others() -> None:
    pages = PageAllocator(12)
    first, second = pages.begin(room=3), pages.begin(room=5)
    pages.end(first)
    assert (first, second) == (range(3), range(3, 8))
    assert [pages.begin(room=2), pages.begin(room=4)] == [range(1, 3), range(8, 12)]


def test_kept_pages_go_last_to_others_but_they_do_go() -> None:
    pages = PageAllocator(6)
    first, other = pages.begin(room=4).start, pages.begin(room=1).start
    tables = [[first], [other]]
    while pages.free:
        tables[1].append(pages.take())
    assert tables == [[0], [4, 5, 1, 2, 3]]
    pages.check(tables, ())


def test_what_was_kept_for_a_sequence_that_ended_is_kept_no_longer() -> None:
    pages = PageAllocator(8)
    room = pages.begin(room=4)
    stolen, grown = pages.take(after=0), pages.take(after=room.stop)
    pages.end(room)
    for page in (room.start, stolen, grown):
        assert pages.let_go(page)
        pages.give_back(page)
    assert pages.begin(room=8) == range(8)


def test_where_no_room_is_left_a_sequence_begins_at_the_lowest_page() -> None:
    pages = PageAllocator(5)
    assert pages.begin(room=3) == range(3)
    assert [pages.begin(room=3) for _ in range(3)] == [range(3, 4), range(4, 5), range(1, 2)]


@given(st.data())
def test_every_page_is_handed_out_once(data: st.DataObject) -> None:
    num_pages = data.draw(st.integers(1, 12), "pages")
    pages = PageAllocator(num_pages)
    running: list[tuple[range, list[int]]] = []
    for _ in range(data.draw(st.integers(1, 30), "steps")):
        if pages.free and data.draw(st.booleans(), "take"):
            if running and data.draw(st.booleans(), "grow"):
                _, table = data.draw(st.sampled_from(running))
                table.append(pages.take(after=table[-1]))
            else:
                room = pages.begin(room=data.draw(st.integers(1, 15), "room"))
                running.append((room, [room.start]))
        elif running:
            room, table = running.pop(data.draw(st.integers(0, len(running) - 1), "ends"))
            pages.end(room)
            for page in table:
                assert pages.let_go(page)
                pages.give_back(page)
        pages.check([table for _, table in running], ())
    for room, table in running:
        pages.end(room)
        for page in table:
            pages.let_go(page)
            pages.give_back(page)
    assert pages.begin(room=num_pages) == range(num_pages)
