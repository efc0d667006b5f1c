"""What a request has used, in OpenAI's form."""

from collections.abc import Sequence
from typing import Any

from headway.engine.messages import PrefillUsage, SelectionUsage
from headway.server.generation import Piece, Started
from headway.server.headway_options import Wishes


class Usage:
    """Counts tokens of one request with `n` sequences for each of its prompts.

    Args:
        wishes: the methods to report on.
    """

    def __init__(self, prompt_lengths: list[int], n: int, wishes: Wishes) -> None:
        self._prompt_tokens = sum(prompt_lengths)
        self._cached: dict[int, int] = {}
        self._generated = 0
        self._n = n
        self._wishes = wishes
        self._selections: list[SelectionUsage] = []
        self._prefills: list[PrefillUsage] = []
        self._full_layers: set[int] | None = None

    def count(self, index: int, event: Started | Piece) -> None:
        """Take note of an event of sequence `index`."""
        if isinstance(event, Piece):
            self._generated += 1
            if event.selection is not None:
                self._selections.append(event.selection)
            if event.prefill is not None:
                self._prefills.append(event.prefill)
            if event.full_layers is not None:
                self._full_layers = (self._full_layers or set()).union(event.full_layers)
            return
        prompt = index // self._n
        # The first of n sequences fills the cache for the others; only what was there before counts.
        self._cached[prompt] = min(event.cached_tokens, self._cached.get(prompt, event.cached_tokens))

    def report(self) -> dict[str, Any]:
        """OpenAI's `usage` object, with `headway` for what selecting did."""
        report: dict[str, Any] = {
            "prompt_tokens": self._prompt_tokens,
            "completion_tokens": self._generated,
            "total_tokens": self._prompt_tokens + self._generated,
            "prompt_tokens_details": {"cached_tokens": sum(self._cached.values())},
        }
        decode, prefill = self._wishes.decode.method, self._wishes.prefill.method
        if decode is not None or prefill is not None or self._full_layers is not None:
            report["headway"] = {"method": decode or "dense", **_decoded(self._selections)}
        if prefill is not None:
            report["headway"]["prefill"] = {"method": prefill, **_prefilled(self._prefills)}
        if self._full_layers is not None:
            report["headway"]["full_layers"] = sorted(self._full_layers)
        return report


def _decoded(selections: Sequence[SelectionUsage]) -> dict[str, int | float]:
    """The counts of sequences that have ended; nothing if none has."""
    if not selections:
        return {}
    steps = sum(one.steps for one in selections)
    attended = sum(one.attended for one in selections)
    context = sum(one.context for one in selections)
    return {
        "steps": steps,
        "tokens_per_step": round(attended / max(1, steps), 2),
        "kv_read_share": round(attended / context, 5) if context else 1.0,
        "refreshes": sum(one.refreshes for one in selections),
    }


def _prefilled(prefills: Sequence[PrefillUsage]) -> dict[str, int | float]:
    """The counts of sequences that have ended; nothing if none has."""
    if not prefills:
        return {}
    tokens = sum(one.tokens for one in prefills)
    read = sum(one.tokens * one.density for one in prefills)
    return {"tokens": tokens, "density": round(read / tokens, 5) if tokens else 1.0}
