"""PagePool: pages of one shape, handed out, found again by what was computed into them, and evicted."""

from collections import OrderedDict
from collections.abc import Collection, Iterable

from headway.engine.pages import PageAllocator


class PagePool:
    """Pages that sequences hold, pages kept for reuse, and free ones.

    A full page is known by a digest; equal digests mean equal content. Several sequences may compute the same
    page at the same time: each keeps its own, all are registered, and as soon as nobody holds one of them it
    is given back unless it is the last with its digest. Hence a page is never freed under a sequence
    (mini-sglang#142).
    """

    def __init__(self, allocator: PageAllocator) -> None:
        self.num_pages = allocator.num_pages
        self._allocator = allocator
        self._pages_of: dict[bytes, list[int]] = {}
        self._digest_of: dict[int, bytes] = {}
        self._idle: OrderedDict[int, None] = OrderedDict()

    @property
    def free(self) -> int:
        """Pages that hold nothing."""
        return self._allocator.free

    @property
    def idle(self) -> int:
        """Cached pages that no sequence holds."""
        return len(self._idle)

    @property
    def used(self) -> int:
        """Pages that sequences hold."""
        return self.num_pages - self.free - self.idle

    def __contains__(self, digest: bytes) -> bool:
        return digest in self._pages_of

    def page(self, digest: bytes) -> int:
        """A page of this digest, which is known."""
        return self._pages_of[digest][0]

    def is_held(self, page: int) -> bool:
        """Whether any sequence holds the page."""
        return self._allocator.is_held(page)

    def is_registered(self, page: int) -> bool:
        """Whether the page is known by a digest."""
        return page in self._digest_of

    def share(self, digest: bytes) -> int:
        """A known page, held once more."""
        page = self.page(digest)
        self._idle.pop(page, None)
        self._allocator.hold(page)
        return page

    def begin(self, room: int) -> range:
        """The first page of a sequence, held, and those kept for it; see `PageAllocator.begin`."""
        return self._allocator.begin(room)

    def take(self, after: int | None = None) -> int:
        """A page held once, if possible the one behind `after`.

        The caller has made sure that one is free or idle.
        """
        self.make_room(1)
        return self._allocator.take(after)

    def end(self, room: range) -> None:
        """The sequence for which these pages were kept wants no more."""
        self._allocator.end(room)

    def make_room(self, pages: int) -> None:
        """Evict the least recently used idle pages until so many are free; the caller knows that it works."""
        for _ in range(pages - self.free):
            self.give_up(next(iter(self._idle)))

    def register(self, page: int, digest: bytes) -> None:
        """Make a held page findable."""
        equals = self._pages_of.setdefault(digest, [])
        if equals and equals[0] in self._idle:
            self.give_up(equals[0])
            equals = self._pages_of.setdefault(digest, [])
        equals.append(page)
        self._digest_of[page] = digest

    def let_go(self, page: int, keep: bool = True) -> None:
        """One holder fewer; the last leaves it idle where it is the only one of its digest, else free."""
        if not self._allocator.let_go(page):
            return
        digest = self._digest_of.get(page)
        if keep and digest is not None and len(self._pages_of[digest]) == 1:
            self._idle[page] = None
        else:
            self.give_up(page)

    def give_up(self, page: int) -> None:
        """Forget an unheld page's content and free it."""
        self._idle.pop(page, None)
        digest = self._digest_of.pop(page, None)
        if digest is not None:
            self._pages_of[digest].remove(page)
            if not self._pages_of[digest]:
                del self._pages_of[digest]
        self._allocator.give_back(page)

    def check(self, tables: Iterable[Collection[int]]) -> None:
        """Prove conservation: free + cached + in use = all pages, every reference count right.

        Args:
            tables: the pages of every sequence that holds any.

        Raises:
            RuntimeError: what is wrong.
        """
        self._allocator.check(tables, self._idle)
        known = {page: digest for digest, pages in self._pages_of.items() for page in pages}
        if known != self._digest_of:
            raise RuntimeError("digests and pages of the prefix cache do not match")
        for pages in self._pages_of.values():
            if len(pages) > 1 and any(page in self._idle for page in pages):
                raise RuntimeError("a page is kept idle although another one has its content")
