"""PageAllocator: which physical pages are free and how many sequences hold the others."""

from collections import Counter
from collections.abc import Collection, Iterable

import numpy as np


class PageAllocator:
    """Reference counts over `num_pages` physical pages; knows nothing of their contents.

    A page is free, held by one or more sequences, or unheld: no longer held but not given back either,
    because the prefix cache keeps its content. Neighbouring pages are read faster: free pages behind those of
    a sequence are kept for it as long as there are others.

    Attributes:
        free: how many pages hold nothing.
    """

    def __init__(self, num_pages: int) -> None:
        self.num_pages = num_pages
        self.free = num_pages
        self._holders = [0] * num_pages
        self._free = np.ones(num_pages, dtype=bool)
        self._kept = np.zeros(num_pages, dtype=bool)  # of the free ones

    def is_held(self, page: int) -> bool:
        """Whether any sequence holds the page."""
        return self._holders[page] > 0

    def begin(self, room: int) -> range:
        """Pages for a sequence that will want `room`: the first is held once, the others are kept for it.

        Where not so many lie side by side, it is one page. The caller has made sure that one is free.
        """
        open_before = np.concatenate(([0], np.cumsum(self._free & ~self._kept)))
        starts = np.flatnonzero(open_before[room:] - open_before[:-room] == room)
        if not len(starts):
            page = self.take()
            return range(page, page + 1)
        first = int(starts[0])
        self._kept[first : first + room] = True
        self._hold_first(first)
        return range(first, first + room)

    def take(self, after: int | None = None) -> int:
        """A free page, held once: the one behind `after` or else the lowest, kept ones last.

        The caller has made sure that there is one.
        """
        if after is not None and after + 1 < self.num_pages and self._free[after + 1]:
            return self._hold_first(after + 1)
        others = self._free & ~self._kept
        return self._hold_first(int(np.argmax(others if others.any() else self._free)))

    def end(self, room: range) -> None:
        """The sequence for which these pages were kept wants no more."""
        self._kept[room.start : room.stop] = False

    def hold(self, page: int) -> None:
        """One more sequence holds this held or unheld page."""
        self._holders[page] += 1

    def let_go(self, page: int) -> bool:
        """One sequence fewer holds the page; True if that leaves it unheld."""
        self._holders[page] -= 1
        return self._holders[page] == 0

    def give_back(self, page: int) -> None:
        """An unheld page becomes free."""
        self._free[page] = True
        self.free += 1

    def check(self, block_tables: Iterable[Collection[int]], unheld: Collection[int]) -> None:
        """Prove that free + unheld + held pages are all pages, and that every count is right.

        Args:
            block_tables: the pages of every sequence that holds any.
            unheld: the pages that the prefix cache keeps and no sequence holds.

        Raises:
            RuntimeError: a page is lost, counted wrongly, or in two states at once.
        """
        held = Counter(page for pages in block_tables for page in pages)
        if any(held[page] != count for page, count in enumerate(self._holders)):
            raise RuntimeError("reference counts differ from the block tables")
        if np.any(self._kept & ~self._free):
            raise RuntimeError("a page that is not free is kept for a sequence")
        everything = sorted([*np.flatnonzero(self._free).tolist(), *unheld, *held])
        if everything != list(range(self.num_pages)) or self.free != np.count_nonzero(self._free):
            raise RuntimeError(
                f"{self.free} free + {len(unheld)} cached + {len(held)} held pages are not "
                f"{self.num_pages} distinct pages"
            )

    def _hold_first(self, page: int) -> int:
        self._free[page] = self._kept[page] = False
        self.free -= 1
        self._holders[page] = 1
        return page
