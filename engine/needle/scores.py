"""What an evaluation counts, the file it is kept in, and that file as Markdown."""

import json
import math
from dataclasses import asdict, dataclass, field
from pathlib import Path

DEPTHS = 10


def _depths() -> list[int]:
    return [0] * DEPTHS


@dataclass
class Score:
    """Answers right among n, over some haystacks of one task and length.

    Attributes:
        seconds: time that making, reading and asking took.
        subject: what answered: weights, and how they read.
        right_at, asked_at: right and n again by tenth of the haystack, for facts whose place is known.
    """

    task: str
    length: int
    right: int = 0
    n: int = 0
    haystacks: int = 0
    seconds: float = 0.0
    subject: str = ""
    right_at: list[int] = field(default_factory=_depths)
    asked_at: list[int] = field(default_factory=_depths)

    def count(self, right: bool, depth: float | None) -> None:
        """Counts one answer; depth: where its fact stands, from 0 up to but not including 1."""
        self.right += right
        self.n += 1
        if depth is not None:
            self.right_at[int(depth * DEPTHS)] += right
            self.asked_at[int(depth * DEPTHS)] += 1

    def interval(self, z: float = 1.96) -> tuple[float, float]:
        """Wilson's 95 % interval."""
        p, n = self.right / self.n, self.n
        middle, half = p + z * z / (2 * n), z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
        return max(0.0, middle - half) / (1 + z * z / n), min(1.0, (middle + half) / (1 + z * z / n))

    def line(self) -> str:
        """One line for people."""
        low, high = self.interval()
        rate = f"{self.right / self.n:6.3f}  [{low:.3f}, {high:.3f}]  n={self.n}"
        return f"{self.length:7d} {self.task:14s} {rate} haystacks={self.haystacks} {self.seconds} s"


def append(path: Path, score: Score) -> None:
    """Adds a line to a file of scores."""
    with path.open("a") as file:
        file.write(json.dumps(asdict(score)) + "\n")


def saved(path: Path, subject: str | None = None) -> list[Score]:
    """The scores in a file; none where there is no file.

    Raises:
        ValueError: it holds scores of another subject.
    """
    if not path.exists():
        return []
    scores = [Score(**json.loads(line)) for line in path.read_text().splitlines()]
    for score in scores:
        if subject is not None and score.subject != subject:
            raise ValueError(f"{path} holds scores of {score.subject!r}, these are of {subject!r}")
    return scores


def _share(right: int, n: int) -> str:
    return f"{100 * right / n:.0f} ({n})" if n else "–"


def _markdown(rows: list[list[str]]) -> str:
    head, *others = rows
    lines = [head, ["---"] * len(head), *others]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def by_task(scores: list[Score]) -> str:
    """Exact match in percent by task and length, answers counted in brackets; a dash: not measured."""
    lengths = sorted({score.length for score in scores})
    rows = [["task", *map(str, lengths)]]
    for task in dict.fromkeys(score.task for score in scores):
        cells = [[s for s in scores if (s.task, s.length) == (task, length)] for length in lengths]
        rows.append([task, *(_share(sum(s.right for s in c), sum(s.n for s in c)) for c in cells)])
    return _markdown(rows)


def by_depth(scores: list[Score]) -> str:
    """Exact match in percent by length and tenth of the haystack, over all tasks, answers in brackets."""
    rows = [["tokens", *(f"{100 * d // DEPTHS}–{100 * (d + 1) // DEPTHS} %" for d in range(DEPTHS))]]
    for length in sorted({score.length for score in scores}):
        of_length = [s for s in scores if s.length == length]
        right = map(sum, zip(*(s.right_at for s in of_length), strict=True))
        asked = map(sum, zip(*(s.asked_at for s in of_length), strict=True))
        rows.append([str(length), *map(_share, right, asked)])
    return _markdown(rows)


def tables(scores: list[Score]) -> str:
    """Both tables of the model card."""
    return f"{by_task(scores)}\n\n{by_depth(scores)}"
