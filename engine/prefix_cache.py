"""PrefixCache: pages found again by what was computed into them, and the least recently used given up first.

A full page is known by a digest chained over everything before it, so that equal digests mean equal KV.
Several sequences may compute the same page at the same time: each keeps its own, all are registered, and as
soon as nobody holds one of them it is given back unless it is the last with its digest. Hence a page is
never freed under a sequence (mini-sglang#142), a cached child always has a cached parent, and the digests
of a sequence that are cached are a prefix of its chain, which a binary search finds.

A prompt that a prefill method selects for shares whole granules only, with prompts of the same recipe: what
a method chooses may depend on where a chunk ends, and on how near the prompt's end is.
"""

import hashlib
import json
from array import array
from bisect import bisect_left
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterable

from headway.engine.pages import PageAllocator
from headway.engine.request import Sequence

DIGEST_BYTES = 32


def root_digest(*parts: bytes) -> bytes:
    """Where a chain begins: all that changes KV beside the tokens (model, RoPE profile, tenant, recipe)."""
    root = hashlib.blake2b(digest_size=DIGEST_BYTES)
    for part in parts:
        root.update(len(part).to_bytes(8, "little"))
        root.update(part)
    return root.digest()


def prefill_identity(sequence: Sequence) -> tuple[bytes, ...]:
    """Parts of the root that tell prefill recipes apart; none where the prompt is dense."""
    if sequence.prefill is None:
        return ()
    recipe = {**sequence.prefill.identity(), "granule": sequence.granule}
    return (json.dumps(recipe, sort_keys=True).encode(),)


class PrefixCache:
    """Hands out pages, keeps full ones for reuse, and evicts tails before their parents.

    Args:
        allocator: the physical pages, used through this cache only.
        page_size: tokens a page.
        root: the chain's beginning for a sequence (see `root_digest`).
        enabled: False keeps nothing for reuse.
    """

    def __init__(
        self,
        allocator: PageAllocator,
        page_size: int,
        root: Callable[[Sequence], bytes],
        enabled: bool = True,
    ) -> None:
        self.page_size = page_size
        self.num_pages = allocator.num_pages
        self._allocator = allocator
        self._root = root
        self._enabled = enabled
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
    def available(self) -> int:
        """Pages that can be handed out: free ones, and idle ones after eviction."""
        return self.free + self.idle

    @property
    def used(self) -> int:
        """Pages that sequences hold."""
        return self.num_pages - self.available

    def pages_for(self, tokens: int) -> int:
        """Pages that hold this many tokens."""
        return -(-tokens // self.page_size)

    def extend_chain(self, sequence: Sequence) -> None:
        """Compute the digests of the sequence's full pages that have none yet."""
        if not self._enabled:
            return
        chain, size = sequence.digests, self.page_size
        digest = chain[-1] if chain else self._root(sequence)
        for start in range(len(chain) * size, len(sequence.tokens) - size + 1, size):
            ids = array("I", sequence.tokens[start : start + size])
            digest = hashlib.blake2b(digest + ids.tobytes(), digest_size=DIGEST_BYTES).digest()
            chain.append(digest)

    def next_shareable(self, sequence: Sequence) -> tuple[int, bytes | None]:
        """Leading pages of the sequence that are cached, and the digest of the next one it could share.

        The page of the last token is never shared, because that token must be computed to get its logits; and
        a prompt whose log-probabilities are wanted must be computed as a whole. Nor is one whose queries a
        decode method must see, or whose tokens a selection was read for. Of granules that are cached in part,
        nothing is shared.
        """
        if sequence.unscored:
            return 0, None
        together = max(1, sequence.granule // self.page_size)
        last = min(len(sequence.tokens) - 1, sequence.observed_from, sequence.shareable)
        shareable = min(last // self.page_size, len(sequence.digests)) // together * together
        hits = bisect_left(range(shareable), True, key=lambda i: sequence.digests[i] not in self._pages_of)
        hits -= hits % together
        return hits, sequence.digests[hits] if hits < shareable else None

    def missing(self, sequence: Sequence, is_held: Callable[[int], bool]) -> int:
        """Available pages that admitting the sequence takes, given which pages are held."""
        hits, _ = self.next_shareable(sequence)
        shared = bisect_left(range(hits), True, key=lambda i: not is_held(self._page(sequence.digests[i])))
        return self.pages_for(len(sequence.tokens)) - shared

    def fits(self, sequence: Sequence, reserve: int) -> bool:
        """Whether the sequence can be admitted now, leaving `reserve` pages available."""
        return self.missing(sequence, self._allocator.is_held) + reserve <= self.available

    def would_fit(self, sequence: Sequence, holders: Collection[Sequence], reserve: int) -> bool:
        """Whether it could be admitted if only `holders` had pages, leaving `reserve` pages available."""
        held = {page for holder in holders for page in holder.pages}
        return self.missing(sequence, held.__contains__) + reserve <= self.num_pages - len(held)

    def admit(self, sequence: Sequence) -> None:
        """Give the sequence pages for all its tokens, the leading ones from the cache where possible.

        The caller has made sure that it `fits`.
        """
        hits, _ = self.next_shareable(sequence)
        for digest in sequence.digests[:hits]:
            page = self._page(digest)
            self._idle.pop(page, None)
            self._allocator.hold(page)
            sequence.pages.append(page)
        sequence.computed = hits * self.page_size
        while len(sequence.pages) < self.pages_for(len(sequence.tokens)):
            self.grow(sequence)

    def grow(self, sequence: Sequence) -> None:
        """Give the sequence one more page; the caller has made sure that one is available."""
        if not self.free:
            self._give_up(next(iter(self._idle)))
        sequence.pages.append(self._allocator.take())

    def register(self, sequence: Sequence) -> None:
        """Make the sequence's full pages findable once they are computed, as far as others may share them."""
        self.extend_chain(sequence)
        shareable = min(sequence.computed, sequence.shareable)
        computed = min(shareable // self.page_size, len(sequence.digests))
        first = computed
        while first and sequence.pages[first - 1] not in self._digest_of:
            first -= 1
        for index in range(first, computed):
            page, digest = sequence.pages[index], sequence.digests[index]
            equals = self._pages_of.setdefault(digest, [])
            if equals and equals[0] in self._idle:
                self._give_up(equals[0])
                equals = self._pages_of.setdefault(digest, [])
            equals.append(page)
            self._digest_of[page] = digest

    def release(self, sequence: Sequence) -> None:
        """Take all pages from the sequence; full ones stay cached, the tail to be evicted first."""
        for page in reversed(sequence.pages):
            if not self._allocator.let_go(page):
                continue
            if page in self._digest_of and len(self._pages_of[self._digest_of[page]]) == 1:
                self._idle[page] = None
            else:
                self._give_up(page)
        sequence.pages.clear()
        sequence.computed = 0

    def check(self, sequences: Iterable[Sequence]) -> None:
        """Prove conservation: free + cached + in use = all pages, every reference count right.

        Raises:
            RuntimeError: what is wrong.
        """
        self._allocator.check([sequence.pages for sequence in sequences], self._idle)
        known = {page: digest for digest, pages in self._pages_of.items() for page in pages}
        if known != self._digest_of:
            raise RuntimeError("digests and pages of the prefix cache do not match")
        for pages in self._pages_of.values():
            if len(pages) > 1 and any(page in self._idle for page in pages):
                raise RuntimeError("a page is kept idle although another one has its content")

    def _page(self, digest: bytes) -> int:
        return self._pages_of[digest][0]

    def _give_up(self, page: int) -> None:
        """Forget an unheld page's content and free it."""
        self._idle.pop(page, None)
        digest = self._digest_of.pop(page, None)
        if digest is not None:
            self._pages_of[digest].remove(page)
            if not self._pages_of[digest]:
                del self._pages_of[digest]
        self._allocator.give_back(page)
