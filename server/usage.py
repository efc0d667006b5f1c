"""What a request has used, in OpenAI's form."""

from collections.abc import Sequence
from typing import Any

from headway.engine.messages import SelectionUsage
from headway.server.generation import Piece, Started


class Usage:
    """Counts tokens of one request with `n` sequences for each of its prompts.

    Args:
        method: the decode method to report on; None: no report.
    """

    def __init__(self, prompt_lengths: list[int], n: int, method: str | None) -> None:
        self._prompt_tokens = sum(prompt_lengths)
        self._cached: dict[int, int] = {}
        self._generated = 0
        self._n = n
        self._method = method
        self._selections: list[SelectionUsage] = []

    def count(self, index: int, event: Started | Piece) -> None:
        """Take note of an event of sequence `index`."""
        if isinstance(event, Piece):
            self._generated += 1
            if event.selection is not None:
                self._selections.append(event.selection)
            return
        prompt = index // self._n
        # The first of n sequences fills the cache for the others; only what was there before counts.
        self._cached[prompt] = min(event.cached_tokens, self._cached.get(prompt, event.cached_tokens))

    def report(self) -> dict[str, Any]:
        """OpenAI's `usage` object, with `headway` for what decode selection did."""
        report: dict[str, Any] = {
            "prompt_tokens": self._prompt_tokens,
            "completion_tokens": self._generated,
            "total_tokens": self._prompt_tokens + self._generated,
            "prompt_tokens_details": {"cached_tokens": sum(self._cached.values())},
        }
        if self._method is not None:
            report["headway"] = {"method": self._method, **_together(self._selections)}
        return report


def _together(selections: Sequence[SelectionUsage]) -> dict[str, int | float]:
    """The counts of sequences that have ended; nothing if none has."""
    if not selections:
        return {}
    steps = sum(one.steps for one in selections)
    attended = sum(one.tokens_per_step * one.steps for one in selections)
    context = sum(one.tokens_per_step * one.steps / one.kv_read_share for one in selections)
    return {
        "steps": steps,
        "tokens_per_step": round(attended / max(1, steps), 2),
        "kv_read_share": round(attended / context, 5) if context else 1.0,
        "refreshes": sum(one.refreshes for one in selections),
    }
