"""Batch: what one step computes, flattened to one row of tokens."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from headway.engine.request import Sequence


@dataclass(frozen=True, slots=True)
class Chunk:
    """`length` tokens of one sequence, beginning at its position `start`; a decode is a chunk of one.

    Attributes:
        samples: whether the last row's logits choose the next token.
        prompt_logprob_rows: rows of this chunk whose logits score a following prompt token (0: none).
    """

    sequence: "Sequence"
    start: int
    length: int
    samples: bool
    prompt_logprob_rows: int = 0

    @property
    def end(self) -> int:
        """Tokens of the sequence that are in the cache once this chunk has run."""
        return self.start + self.length


@dataclass(frozen=True, slots=True)
class Batch:
    """The chunks of one step, in the order in which their tokens lie in the flattened row."""

    chunks: tuple[Chunk, ...]

    @property
    def num_tokens(self) -> int:
        """Tokens computed in this step."""
        return sum(chunk.length for chunk in self.chunks)

    def logit_rows(self) -> list[int]:
        """Flattened rows whose logits are needed: of each chunk its prompt-logprob rows, then its last row
        if it samples. A row that samples is never a prompt-logprob row."""
        rows: list[int] = []
        offset = 0
        for chunk in self.chunks:
            rows.extend(range(offset, offset + chunk.prompt_logprob_rows))
            offset += chunk.length
            if chunk.samples:
                rows.append(offset - 1)
        return rows
