"""StreamingPages: the pages of heads that stream, of which a sequence holds sinks and window only.

The memory saving of DuoAttention (arXiv 2410.10819), in pages: those that fall out of a sequence's window are
let go of as it grows, and serve its next tokens. A sequence's table keeps its length; where a page is gone it
names one that nobody writes and nothing may read.

Through the prefix cache a sequence shares pages of these heads where those of the other heads are shared.
It can continue behind a cached page only if sinks and window before that point are still there: a prompt's
last pages stay cached for that, those in its middle do not.

Each running sequence reserves the most that it may hold at once, being as long as it is: what a chunk takes
while its prompt is computed, then everything below `dense_below`, beyond that sinks and window. So a chunk
never lacks a page; where a generated token does, the least important sequence is preempted, as ever.
"""

from bisect import bisect_right
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from itertools import chain, takewhile

from headway.engine.errors import RequestError
from headway.engine.page_pool import PagePool
from headway.engine.pages import PageAllocator
from headway.engine.request import Sequence
from headway.engine.selection.head_route import HeadRoutes

REUSE_TOKENS = 1024
"""Tokens before a prompt's end, a question's length or so, from which another prompt can continue."""


class StreamingPages:
    """One pool beside the prefix cache's own, with its rules of what stays.

    Args:
        num_pages: physical pages; the page of this number is the one that nothing may read.
        longest_chunk: tokens that a sequence may compute in one step.

    Attributes:
        pool: the physical pages that sequences may hold.
    """

    def __init__(self, num_pages: int, page_size: int, routes: HeadRoutes, longest_chunk: int) -> None:
        self.void = self.num_pages = num_pages
        self.pool = PagePool(PageAllocator(num_pages))
        self._page_size = page_size
        self._routes = routes
        self._longest_chunk = longest_chunk
        self._sink_pages = -(-routes.sink_size // page_size)

    def reserved(self, sequence: Sequence) -> int:
        """The most pages that a sequence holds at once until it is computed as far as it goes."""
        streams = sequence.computed >= max(sequence.num_prompt, sequence.streams_from)
        return self._most(len(sequence.tokens), 0 if streams else sequence.streams_from, streams)

    def refuse(self, sequence: Sequence) -> None:
        """Refuse what would never come to its end.

        Raises:
            RequestError: it would hold more pages at once than there are.
        """
        length, whole = sequence.num_prompt + sequence.max_tokens, sequence.streams_from
        if self._most(length, whole, streams=False) <= self.num_pages:
            return
        scored = sequence.submit.sampling.prompt_logprobs is not None
        what = "prompt_logprobs" if scored else "headway"
        room = max(0, self.num_pages * self._page_size - self._longest_chunk)
        raise RequestError(
            f"{what}: every head would read the first {min(length, whole)} tokens whole, but there is "
            f"room for {room} tokens of the heads that stream (recipe.memory.streaming_heads: drop)",
            what,
        )

    def suffice(self, running: Iterable[Sequence], spare: int = 0) -> bool:
        """Whether these have the pages that they reserve, with `spare` more."""
        return sum(map(self.reserved, running)) + spare <= self.num_pages

    def shareable(self, sequence: Sequence, hits: int, together: int) -> int:
        """Of `hits` leading pages that the other heads share, how many these can, in whole granules."""
        while hits and (missing := self._missing(sequence, hits)) is not None:
            hits = missing - missing % together
        return hits

    def admit(self, sequence: Sequence, hits: int) -> None:
        """Hold what the sequence needs of the leading pages that it shares."""
        needed = set(self._needed(sequence, hits))
        for index in range(hits):
            page = self.pool.share(sequence.digests[index]) if index in needed else self.void
            sequence.streaming_pages.append(page)

    def reach(self, sequence: Sequence, end: int) -> None:
        """Give the sequence pages for all tokens before `end`."""
        while len(sequence.streaming_pages) * self._page_size < end:
            sequence.streaming_pages.append(self.pool.take())

    def advance(self, sequence: Sequence) -> None:
        """Register what is computed and shareable, and let go of what fell out of the window."""
        pages, size = sequence.streaming_pages, self._page_size
        full = min(min(sequence.computed, sequence.shareable) // size, len(sequence.digests))
        fresh = takewhile(
            lambda i: not self.pool.is_registered(pages[i]), self._held_before(sequence, full, 0)
        )
        for index in reversed(tuple(fresh)):
            self.pool.register(pages[index], sequence.digests[index])
        first = self._first_read(sequence, sequence.computed) // size
        for index in reversed(tuple(self._held_before(sequence, first, self._sink_pages))):
            self.pool.let_go(pages[index], keep=self._is_reusable(sequence, index))
            pages[index] = self.void

    def release(self, sequence: Sequence) -> None:
        """Take all pages from the sequence."""
        for page in reversed(sequence.streaming_pages):
            if page != self.void:
                self.pool.let_go(page)
        sequence.streaming_pages.clear()

    def held(self, sequence: Sequence) -> list[int]:
        """The pages that a sequence holds."""
        return [page for page in sequence.streaming_pages if page != self.void]

    def check(self, sequences: Collection[Sequence]) -> None:
        """Prove conservation, and that nobody holds more than it has reserved.

        Raises:
            RuntimeError: what is wrong.
        """
        self.pool.check([self.held(sequence) for sequence in sequences])
        for sequence in sequences:
            if len(self.held(sequence)) > self.reserved(sequence):
                raise RuntimeError("a sequence holds more pages of streaming heads than it has reserved")

    def _first_read(self, sequence: Sequence, position: int) -> int:
        """The first token beside the sinks that is read at `position`, where a chunk begins, or later."""
        return 0 if position < sequence.streams_from else max(0, position - self._routes.window_size)

    def _held_before(self, sequence: Sequence, stop: int, start: int) -> Iterator[int]:
        """The sequence's last pages in [start, stop), backwards up to one that is gone."""
        return takewhile(lambda i: sequence.streaming_pages[i] != self.void, range(stop - 1, start - 1, -1))

    def _needed(self, sequence: Sequence, hits: int) -> Iterator[int]:
        """The leading pages that tokens behind `hits` pages read, the last one first."""
        first = self._first_read(sequence, hits * self._page_size) // self._page_size
        return chain(range(hits - 1, first - 1, -1), range(min(self._sink_pages, first) - 1, -1, -1))

    def _missing(self, sequence: Sequence, hits: int) -> int | None:
        """The last of those that is not there."""
        needed = self._needed(sequence, hits)
        return next((i for i in needed if sequence.digests[i] not in self.pool), None)

    def _is_reusable(self, sequence: Sequence, index: int) -> bool:
        """Whether another prompt may want a page that the sequence needs no more.

        Those do from which it found it, those that read a beginning as a whole, and those that go on near
        the end of its prompt.
        """
        first, size = index * self._page_size, self._page_size
        end = min(sequence.shareable, sequence.num_prompt) - sequence.granule - REUSE_TOKENS
        whole = min(sequence.streams_from, sequence.num_prompt)
        return first < max(sequence.cached, whole) or first + size > end - self._routes.window_size

    def _most(self, length: int, whole: int, streams: bool) -> int:
        chunk = 1 if streams else self._longest_chunk
        return most_pages(self._routes, self._page_size, chunk, whole, length)


def most_pages(routes: HeadRoutes, page_size: int, longest_chunk: int, streams_from: int, length: int) -> int:
    """The most pages that a sequence of `length` tokens holds at once.

    Args:
        longest_chunk: tokens that it may compute in one step.
        streams_from: tokens up to which it holds everything.
    """
    whole = min(length, streams_from + longest_chunk if streams_from else 0)
    streaming = -(-routes.sink_size // page_size) + (routes.window_size + longest_chunk) // page_size + 2
    return max(-(-whole // page_size), min(-(-length // page_size), streaming))


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamingNeeds:
    """What pages of heads that stream cost, and how many there must be.

    Attributes:
        page: bytes of one.
        most: the most that a sequence holds at once while its prompt is computed.
        least: what it holds from then on, and what stays cached of it.
        document: pages of the other heads that an ordinary long prompt takes.
        prompts: how many prompts are computed side by side.
        sequences: how many sequences may run at once.
    """

    page: int
    most: int
    least: int
    document: int
    prompts: int
    sequences: int

    def pages(self, num_pages: int) -> int:
        """For `num_pages` pages of the other heads: enough for the prompts, and for documents that fit."""
        documents = -(-num_pages // self.document)
        prompts = min(self.prompts, documents) * self.most
        return min(prompts + documents * self.least, self.sequences * self.most, num_pages)

    def fitting(self, available: int, page: int) -> int:
        """How many pages of the other heads, of `page` bytes each, fit beside these and the void one."""
        fits = range(available // page + 1)
        return bisect_right(fits, available, key=lambda n: n * page + (self.pages(n) + 1) * self.page) - 1
