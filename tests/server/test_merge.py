"""Many streams as one."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headway.server.merge import merge


class Streams:
    """Streams of the given lengths; knows which are open."""

    def __init__(self, lengths: list[int], fails: int | None = None) -> None:
        self.lengths = lengths
        self.fails = fails
        self.open: set[int] = set()

    async def stream(self, index: int) -> AsyncGenerator[int, None]:
        self.open.add(index)
        try:
            for number in range(self.lengths[index]):
                await asyncio.sleep(0)
                yield number
            if index == self.fails:
                raise ValueError(index)
        finally:
            await asyncio.sleep(0)
            self.open.remove(index)

    def all(self) -> list[AsyncGenerator[int, None]]:
        return [self.stream(index) for index in range(len(self.lengths))]


@settings(deadline=None)
@given(st.lists(st.integers(0, 6), min_size=1, max_size=5))
def test_nothing_is_lost_and_each_stream_keeps_its_order(lengths: list[int]) -> None:
    async def run() -> list[tuple[int, int]]:
        return [item async for item in merge(Streams(lengths).all())]

    items = asyncio.run(run())
    assert sorted(items) == [(index, n) for index, length in enumerate(lengths) for n in range(length)]
    for index in range(len(lengths)):
        numbers = [n for stream, n in items if stream == index]
        assert numbers == sorted(numbers)


@pytest.mark.parametrize("fails", [0, 1])
def test_an_error_closes_the_others(fails: int) -> None:
    async def run() -> None:
        streams = Streams([2, 2, 10**9], fails)
        with pytest.raises(ValueError, match=str(fails)):
            async for _ in merge(streams.all()):
                pass
        assert not streams.open

    asyncio.run(run())


def test_closing_early_closes_all() -> None:
    async def run() -> None:
        streams = Streams([10**9] * 3)
        async with aclosing(merge(streams.all())) as merged:
            async for _ in merged:
                break
            assert streams.open == {0, 1, 2}
        assert not streams.open

    asyncio.run(run())
