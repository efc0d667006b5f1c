"""PageAllocator: which physical pages are free and how many sequences hold the others."""

from collections import Counter
from collections.abc import Collection, Iterable
from heapq import heappop, heappush


class PageAllocator:
    """Reference counts over `num_pages` physical pages; knows nothing of their contents.

    A page is free, held by one or more sequences, or unheld: no longer held but not given back either,
    because the prefix cache keeps its content.
    """

    def __init__(self, num_pages: int) -> None:
        self.num_pages = num_pages
        self._holders = [0] * num_pages
        self._free = list(range(num_pages))  # a heap: neighbouring pages are read faster

    @property
    def free(self) -> int:
        """Pages that hold nothing."""
        return len(self._free)

    def is_held(self, page: int) -> bool:
        """Whether any sequence holds the page."""
        return self._holders[page] > 0

    def take(self) -> int:
        """The lowest free page, held once. The caller has made sure that there is one."""
        page = heappop(self._free)
        self._holders[page] = 1
        return page

    def hold(self, page: int) -> None:
        """One more sequence holds this held or unheld page."""
        self._holders[page] += 1

    def let_go(self, page: int) -> bool:
        """One sequence fewer holds the page; True if that leaves it unheld."""
        self._holders[page] -= 1
        return self._holders[page] == 0

    def give_back(self, page: int) -> None:
        """An unheld page becomes free."""
        heappush(self._free, page)

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
        everything = sorted([*self._free, *unheld, *held])
        if everything != list(range(self.num_pages)):
            raise RuntimeError(
                f"{self.free} free + {len(unheld)} cached + {len(held)} held pages are not "
                f"{self.num_pages} distinct pages"
            )
