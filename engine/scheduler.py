"""Scheduler: which tokens run next.

Decodes come first, one token for every running sequence whose tokens are all computed but the last. What is
left of the step's token budget goes to prefill chunks, priority by priority. Within one priority, prompts
are ordered by uncached tokens minus what they gained by waiting; each takes at most half of what is left,
so that a long prompt never takes all and, however many go before it, always gets some; the rest is dealt
out in the same order. The shortest prompt is never later than second, so that long ones that have aged do
not shut it out.

A prompt that is computed in granules ends its chunks where granules end: its half is rounded down to whole
granules, but up to one where one is left. If the first prompt leaves none for the shortest, the shortest
goes first in every other step.

A sequence gets the pages of its whole prompt when it is admitted, so that prompts in progress never compete
for pages. Decodes take a page when they need one; when none is left, the least important running sequence
(lowest priority, newest) is preempted and computed again later, as far as its pages have not stayed cached.
Tokens that a selection was read for are computed again one by one, as they were the first time.
"""

from bisect import insort
from collections.abc import Iterable
from itertools import groupby

from headway.engine.batch import Batch, Chunk
from headway.engine.config import SchedulerConfig
from headway.engine.prefix_cache import PrefixCache
from headway.engine.request import Sequence

SCORED_ROWS = 256
"""Rows of prompt log-probabilities in one step: a row costs 4 bytes for every token of the vocabulary."""


class Scheduler:
    """Waiting and running sequences over one pool of pages.

    Attributes:
        waiting: sequences without pages, in no order.
        running: sequences with pages, the most important first.
        preemptions: how often a running sequence lost its pages.
    """

    def __init__(self, config: SchedulerConfig, cache: PrefixCache) -> None:
        self.waiting: list[Sequence] = []
        self.running: list[Sequence] = []
        self.preemptions = 0
        self._config = config
        self._cache = cache
        self._grants: dict[Sequence, int] = {}
        self._scored_rows_left = 0
        self._steps = 0
        self._blocked: Sequence | None = None
        self._slack = self._reservable = 0

    def add(self, sequence: Sequence) -> None:
        """Queue a sequence; its context fits the page pool."""
        self._cache.extend_chain(sequence)
        self.waiting.append(sequence)

    def remove(self, sequence: Sequence) -> None:
        """Forget a sequence that ended, wherever it is; its full pages stay cached."""
        if sequence.pages:
            self.running.remove(sequence)
            self._cache.release(sequence)
        else:
            self.waiting.remove(sequence)

    def schedule(self) -> Batch:
        """Choose the next step's chunks; empty only if there is nothing to do."""
        self._steps += 1
        self._grants = {}
        self._blocked = None
        self._scored_rows_left = SCORED_ROWS
        self._grant_decodes()
        budget = self._config.max_step_tokens - len(self._grants)
        prompts = [s for s in self.running if s.remaining > 1]
        prompts += filter(self._has_place, self.waiting)
        prompts.sort(key=lambda s: s.submit.priority)
        for _, equals in groupby(prompts, key=lambda s: s.submit.priority):
            if not budget:
                break
            budget = self._grant_prefills(equals, budget)
        chunks = tuple(_chunk(sequence, length) for sequence, length in self._grants.items())
        for chunk in chunks:
            self._cache.reach(chunk.sequence, chunk.end)
        return Batch(chunks)

    def _grant_decodes(self) -> None:
        index = 0
        while index < len(self.running):
            sequence = self.running[index]
            if sequence.remaining == 1 and self._has_room(sequence):
                self._grants[sequence] = 1
            index += 1

    def _has_room(self, sequence: Sequence) -> bool:
        """Whether the next token has a page, taken from less important sequences if need be.

        The least important sequence itself waits, with its pages, until others end or take them.
        """
        if len(sequence.pages) < self._cache.pages_for(len(sequence.tokens)):
            while not self._cache.can_grow(self.running):
                if self.running[-1] is sequence:
                    return False
                self._preempt(self.running[-1])
            self._cache.grow(sequence)
        return True

    def _grant_prefills(self, prompts: Iterable[Sequence], budget: int) -> int:
        """Share the budget among prompts of one priority; returns what is left of it."""
        granted: list[Sequence] = []
        partial = 0
        for prompt in self._in_order(list(prompts), budget):
            if not budget:
                break
            sequence = prompt
            if not prompt.pages:
                if self._overtakes(prompt):
                    continue
                sequence = self._computing_next_page_of(prompt) or prompt
            if sequence in self._grants or (sequence is not prompt and sequence.remaining == 1):
                continue
            uncached = self._uncached(sequence)
            wanted = self._length(sequence, len(sequence.tokens) - uncached, _share(sequence, budget))
            completes = wanted == uncached
            if not wanted or not (completes or partial < self._config.max_partial_prefills):
                continue
            if not sequence.pages and not self._admit(sequence):
                continue
            partial += not completes
            granted.append(sequence)
            budget -= self._grant(sequence, wanted)
        for sequence in granted:
            if sequence in self._grants:
                granted_already = self._grants[sequence]
                length = self._length(sequence, sequence.computed, budget, granted_already)
                budget -= self._grant(sequence, length - granted_already)
        return budget

    def _grant(self, sequence: Sequence, tokens: int) -> int:
        self._grants[sequence] = self._grants.get(sequence, 0) + tokens
        if sequence.unscored:
            self._scored_rows_left -= tokens
        return tokens

    def _length(self, sequence: Sequence, start: int, most: int, granted: int = 0) -> int:
        """Tokens of the chunk from position `start` on: those granted, and at most `most` beyond them."""
        if sequence.unscored:
            most = min(most, self._scored_rows_left)
        return sequence.chunk_length(start, min(granted + most, len(sequence.tokens) - start))

    def _in_order(self, prompts: list[Sequence], budget: int) -> list[Sequence]:
        rate = self._config.ageing_tokens_per_second
        uncached = {sequence: self._uncached(sequence) for sequence in prompts}
        prompts.sort(key=lambda s: uncached[s] + rate * s.arrival)
        shortest = min(prompts, key=lambda s: uncached[s])
        first = prompts[0]
        if shortest is not first:
            left_none = budget - _share(first, budget) < shortest.granule
            prompts.remove(shortest)
            prompts.insert(0 if left_none and self._steps % 2 else 1, shortest)
        return prompts

    def _uncached(self, sequence: Sequence) -> int:
        if sequence.pages:
            return sequence.remaining
        hits, _ = self._cache.next_shareable(sequence)
        return sequence.remaining - hits * self._cache.page_size

    def _computing_next_page_of(self, waiting: Sequence) -> Sequence | None:
        """The running sequence whose next pages this one will share: it goes first, in this one's place."""
        hits, digest = self._cache.next_shareable(waiting)
        if digest is None:
            return None
        return next((s for s in self.running if self._will_share(s, hits, digest)), None)

    def _will_share(self, running: Sequence, page: int, digest: bytes) -> bool:
        size = self._cache.page_size
        shared = min(len(running.digests), running.shareable // size)
        return running.computed // size <= page < shared and running.digests[page] == digest

    def _has_place(self, waiting: Sequence) -> bool:
        """Whether one more may run, or one of lower priority might give way."""
        full = len(self.running) == self._config.max_running
        return not full or self.running[-1].submit.priority > waiting.submit.priority

    def _admit(self, sequence: Sequence) -> bool:
        """Move a waiting sequence to the running ones if it fits, preempting sequences of lower priority."""
        if not self._fits(sequence):
            keep = [s for s in self.running if s.submit.priority <= sequence.submit.priority]
            if not self._would_fit(sequence, keep):
                self._block(sequence)
                return False
            while not self._fits(sequence):
                self._preempt(self.running[-1])
        self.waiting.remove(sequence)
        self._cache.admit(sequence)
        self._slack -= len(sequence.pages) + 1
        self._reservable -= self._cache.reserved(sequence)
        if sequence.cached < 0:
            sequence.cached = sequence.computed
        insort(self.running, sequence, key=_importance)
        return True

    def _fits(self, sequence: Sequence) -> bool:
        """Whether a place and pages are there, with a page left for every sequence that runs already."""
        full = len(self.running) == self._config.max_running
        return not full and self._cache.fits(sequence, self.running)

    def _would_fit(self, sequence: Sequence, keep: list[Sequence]) -> bool:
        """Whether it fits if only `keep` go on running."""
        if len(keep) in (len(self.running), self._config.max_running):
            return False
        return self._cache.would_fit(sequence, keep)

    def _block(self, sequence: Sequence) -> None:
        """The first that does not fit holds back what is less important, lest it be overtaken for ever.

        Once everything more important has ended, it shall find its pages: the less important ones may only
        have the rest.
        """
        if self._blocked is None:
            rivals = [s for s in self.running if _importance(s) > _importance(sequence)]
            sharing = (*rivals, sequence)
            needed = sum(self._cache.pages_for(len(s.tokens)) + 1 for s in sharing)
            self._blocked, self._slack = sequence, self._cache.num_pages - needed
            self._reservable = self._cache.reservable - sum(map(self._cache.reserved, sharing))

    def _overtakes(self, sequence: Sequence) -> bool:
        if self._blocked is None or _importance(sequence) < _importance(self._blocked):
            return False
        return (
            self._cache.pages_for(len(sequence.tokens)) + 1 > self._slack
            or self._cache.reserved(sequence) > self._reservable
        )

    def _preempt(self, sequence: Sequence) -> None:
        self.running.remove(sequence)
        self._grants.pop(sequence, None)
        self._cache.release(sequence)
        sequence.selection = None
        self.waiting.append(sequence)
        self.preemptions += 1


def _share(sequence: Sequence, budget: int) -> int:
    """Half of the budget, but no less than a granule as long as there is one."""
    return max((budget + 1) // 2, min(sequence.granule, budget))


def _importance(sequence: Sequence) -> tuple[int, float]:
    """Sorts the most important first."""
    return sequence.submit.priority, sequence.arrival


def _chunk(sequence: Sequence, length: int) -> Chunk:
    end = sequence.computed + length
    scored = min(end, sequence.num_prompt - 1) - sequence.computed if sequence.unscored else 0
    return Chunk(
        sequence,
        sequence.computed,
        length,
        samples=end == len(sequence.tokens),
        prompt_logprob_rows=max(0, scored),
    )
