"""Token ids of text pieces, without a round trip through the tokenizer for what was seen before."""

from collections.abc import Iterable
from functools import lru_cache

from tokenizers import Tokenizer

from headway.engine.needle import WEIGHTS

Pieces = list[str]
"""Text cut where the tokenizer cuts anyway, so that ids of pieces, concatenated, are the ids of the text."""


class Coder:
    """Encodes pieces; numbers by table, everything else through a cache."""

    def __init__(self, path: str = str(WEIGHTS / "tokenizer.json")) -> None:
        self.tokenizer: Tokenizer = Tokenizer.from_file(path)
        self.numbers = {f"{n:0{w}}": self.token(f"{n:0{w}}") for w in (1, 2, 3) for n in range(10**w)}
        self.end = self.token("<|end|>")
        self.user = self.token("<|user|>")
        self.assistant = self.token("<|assistant|>")
        self.system = self.token("<|system|>")
        self._cached = lru_cache(maxsize=200_000)(self._encode)

    def token(self, token: str) -> int:
        """Id of a token that must exist."""
        found = self.tokenizer.token_to_id(token)
        assert found is not None, token
        return found

    def _encode(self, piece: str) -> list[int]:
        return list(self.tokenizer.encode(piece, add_special_tokens=False).ids)

    def piece(self, piece: str) -> list[int]:
        """Ids of one piece; callers must not change the list."""
        if piece[:1].isdigit() and piece.isdigit():
            return [self.numbers[piece[i : i + 3]] for i in range(0, len(piece), 3)]
        return self._cached(piece)

    def ids(self, pieces: Iterable[str]) -> list[int]:
        """Ids of pieces in order."""
        out: list[int] = []
        for piece in pieces:
            out += self.piece(piece)
        return out
