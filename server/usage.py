"""What a request has used, in OpenAI's form."""

from typing import Any

from headway.server.generation import Piece, Started


class Usage:
    """Counts tokens of one request with `n` sequences for each of its prompts."""

    def __init__(self, prompt_lengths: list[int], n: int) -> None:
        self._prompt_tokens = sum(prompt_lengths)
        self._cached: dict[int, int] = {}
        self._generated = 0
        self._n = n

    def count(self, index: int, event: Started | Piece) -> None:
        """Take note of an event of sequence `index`."""
        if isinstance(event, Piece):
            self._generated += 1
            return
        prompt = index // self._n
        # The first of n sequences fills the cache for the others; only what was there before counts.
        self._cached[prompt] = min(event.cached_tokens, self._cached.get(prompt, event.cached_tokens))

    def report(self) -> dict[str, Any]:
        """OpenAI's `usage` object."""
        return {
            "prompt_tokens": self._prompt_tokens,
            "completion_tokens": self._generated,
            "total_tokens": self._prompt_tokens + self._generated,
            "prompt_tokens_details": {"cached_tokens": sum(self._cached.values())},
        }
