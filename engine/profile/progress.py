"""Progress: what a profile tells while it is made, and where it may leave a checkpoint."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar

Item = TypeVar("Item")


class Progress(Protocol):
    """Given to every `run(loaded, settings, progress)`.

    Attributes:
        checkpoint: a file of its own that a long profile may write and find again after a crash; removed by
            the caller once the profile is saved. None: nothing is kept.
    """

    checkpoint: Path | None

    def begin(self, label: str, total: int) -> None:
        """A new part of `total` steps begins."""

    def advance(self, steps: int = 1) -> None:
        """Some steps of that part are done."""


@dataclass(slots=True)
class Silent:
    """Progress that nobody watches."""

    checkpoint: Path | None = None

    def begin(self, label: str, total: int) -> None:
        """Nothing."""

    def advance(self, steps: int = 1) -> None:
        """Nothing."""


def tracked(progress: Progress, label: str, items: Iterable[Item]) -> Iterator[Item]:
    """The items, each a step."""
    items = list(items)
    progress.begin(label, len(items))
    for item in items:
        yield item
        progress.advance()
