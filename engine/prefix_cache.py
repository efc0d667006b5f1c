"""PrefixCache: pages found again by what was computed into them, and the least recently used given up first.

A full page is known by a digest chained over everything before it, so that equal digests mean equal KV. A
cached child always has a cached parent, so the digests of a sequence that are cached are a prefix of its
chain, which a binary search finds.

A prompt that a prefill method selects for shares whole granules only, with prompts of the same recipe: what
a method chooses may depend on where a chunk ends, and on how near the prompt's end is.
"""

import hashlib
import json
from array import array
from bisect import bisect_left
from collections.abc import Callable, Collection

from headway.engine.page_pool import PagePool
from headway.engine.pages import PageAllocator
from headway.engine.request import Sequence
from headway.engine.streaming_pages import StreamingPages

DIGEST_BYTES = 32

KEPT_PAGES = 8
"""Pages behind a prompt's that others take last: an answer that lies behind its prompt is read with it."""


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
        streaming: pages of heads that stream, where these have their own.

    Attributes:
        streaming_pool: the pages of heads that stream; empty where these have none of their own.
        reservable: pages that sequences may have reserved in all, see `reserved`.
    """

    def __init__(
        self,
        allocator: PageAllocator,
        page_size: int,
        root: Callable[[Sequence], bytes],
        enabled: bool = True,
        streaming: StreamingPages | None = None,
    ) -> None:
        self.page_size = page_size
        self.num_pages = allocator.num_pages
        self._pool = PagePool(allocator)
        self._root = root
        self._enabled = enabled
        self._streaming = streaming
        self.streaming_pool = PagePool(PageAllocator(0)) if streaming is None else streaming.pool
        self.reservable = self.streaming_pool.num_pages

    @property
    def free(self) -> int:
        """Pages that hold nothing."""
        return self._pool.free

    @property
    def idle(self) -> int:
        """Cached pages that no sequence holds."""
        return self._pool.idle

    @property
    def available(self) -> int:
        """Pages that can be handed out: free ones, and idle ones after eviction."""
        return self.free + self.idle

    @property
    def used(self) -> int:
        """Pages that sequences hold."""
        return self._pool.used

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
        hits = bisect_left(range(shareable), True, key=lambda i: sequence.digests[i] not in self._pool)
        hits -= hits % together
        if self._streaming is not None:
            hits = self._streaming.shareable(sequence, hits, together)
        return hits, sequence.digests[hits] if hits < shareable else None

    def missing(self, sequence: Sequence, is_held: Callable[[int], bool]) -> int:
        """Available pages that admitting the sequence takes, given which pages are held."""
        hits, _ = self.next_shareable(sequence)
        shared = bisect_left(
            range(hits), True, key=lambda i: not is_held(self._pool.page(sequence.digests[i]))
        )
        return self.pages_for(len(sequence.tokens)) - shared

    def refuse(self, sequence: Sequence) -> None:
        """Refuse what would never be admitted.

        Raises:
            RequestError: what is too much, and how much there is room for.
        """
        if self._streaming is not None:
            self._streaming.refuse(sequence)

    def reserved(self, sequence: Sequence) -> int:
        """Pages of heads that stream that a sequence reserves, being as long as it is."""
        return 0 if self._streaming is None else self._streaming.reserved(sequence)

    def fits(self, sequence: Sequence, running: Collection[Sequence]) -> bool:
        """Whether the sequence can be admitted now, leaving a page for each of those running."""
        room = self._streaming_suffice((*running, sequence), len(running))
        return room and self.missing(sequence, self._pool.is_held) + len(running) <= self.available

    def would_fit(self, sequence: Sequence, holders: Collection[Sequence]) -> bool:
        """The same if only `holders` were running."""
        held = {page for holder in holders for page in holder.pages}
        room = self._streaming_suffice((*holders, sequence), len(holders))
        return room and self.missing(sequence, held.__contains__) + len(holders) <= self.num_pages - len(held)

    def admit(self, sequence: Sequence) -> None:
        """Give the sequence pages for all its tokens, the leading ones from the cache where possible.

        The caller has made sure that it `fits`.
        """
        hits, _ = self.next_shareable(sequence)
        sequence.pages += map(self._pool.share, sequence.digests[:hits])
        if self._streaming is not None:
            self._streaming.admit(sequence, hits)
        sequence.computed = hits * self.page_size
        needed = self.pages_for(len(sequence.tokens))
        self._pool.make_room(needed - hits)
        if not hits:
            whole = self.pages_for(sequence.num_prompt + sequence.max_tokens)
            sequence.room = self._pool.begin(min(whole, needed + KEPT_PAGES))
            sequence.pages.append(sequence.room.start)
        while len(sequence.pages) < needed:
            self.grow(sequence)

    def can_grow(self, running: Collection[Sequence]) -> bool:
        """Whether there is a page for the next token of one of those running."""
        return self.available > 0 and self._streaming_suffice(running)

    def grow(self, sequence: Sequence) -> None:
        """Give the sequence one more page; the caller has made sure that one is available."""
        sequence.pages.append(self._pool.take(after=sequence.pages[-1]))

    def reach(self, sequence: Sequence, end: int) -> None:
        """Give the sequence what computing its tokens up to `end` takes beside its pages."""
        if self._streaming is not None:
            self._streaming.reach(sequence, end)

    def advance(self, sequence: Sequence) -> None:
        """Tokens were computed: make full pages findable, as far as others may share them."""
        self.extend_chain(sequence)
        shareable = min(sequence.computed, sequence.shareable)
        computed = min(shareable // self.page_size, len(sequence.digests))
        first = computed
        while first and not self._pool.is_registered(sequence.pages[first - 1]):
            first -= 1
        for index in range(first, computed):
            self._pool.register(sequence.pages[index], sequence.digests[index])
        if self._streaming is not None:
            self._streaming.advance(sequence)

    def release(self, sequence: Sequence) -> None:
        """Take all pages from the sequence; full ones stay cached, the tail to be evicted first."""
        self._pool.end(sequence.room)
        sequence.room = range(0)
        for page in reversed(sequence.pages):
            self._pool.let_go(page)
        sequence.pages.clear()
        if self._streaming is not None:
            self._streaming.release(sequence)
        sequence.computed = 0

    def check(self, sequences: Collection[Sequence]) -> None:
        """Prove conservation: free + cached + in use = all pages, every reference count right.

        Raises:
            RuntimeError: what is wrong.
        """
        self._pool.check([sequence.pages for sequence in sequences])
        if self._streaming is not None:
            self._streaming.check(sequences)

    def _streaming_suffice(self, running: Collection[Sequence], spare: int = 0) -> bool:
        return self._streaming is None or self._streaming.suffice(running, spare)
