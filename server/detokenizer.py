"""Detokenizer: text from tokens as they come, never half a character."""

from collections.abc import Sequence

from tokenizers import Tokenizer

# A character has at most four bytes, hence tokens. If more wait they are broken, and decoding all of them for
# each new one would cost the square of their number.
LONGEST_WAIT = 16
REPLACEMENT = "\ufffd"


class Detokenizer:
    """The pieces that it returns join to the text that decoding all tokens at once gives.

    Where the tokenizer can decode a token only together with its neighbours (SentencePiece's byte tokens),
    that holds for valid text; broken bytes become replacement characters either way.

    Args:
        backend: the tokenizer.
        prompt: tokens before the first one; they decide whether a leading space belongs to the text.
        skipped: tokens to leave out of the text.
    """

    def __init__(
        self, backend: Tokenizer, prompt: Sequence[int] = (), skipped: frozenset[int] = frozenset()
    ) -> None:
        self._backend = backend
        self._skipped = skipped
        self._context = [token for token in prompt[-LONGEST_WAIT:] if token not in self._skipped]
        self._context_text = self._decode(self._context)
        self._waiting: list[int] = []

    def push(self, tokens: Sequence[int]) -> str:
        """The text that is certain after `tokens` were added; many tokens at once are one decoding."""
        self._waiting += [token for token in tokens if token not in self._skipped]
        text = self._waiting_text()
        if text and not text.endswith(REPLACEMENT):
            return self._emit(len(self._waiting), text)
        if len(self._waiting) <= LONGEST_WAIT:
            return ""
        return self._emit(*self._certain(text))

    def flush(self) -> str:
        """The text that was waiting for the rest of a character which will not come."""
        return self._emit(len(self._waiting), self._waiting_text())

    def _decode(self, tokens: Sequence[int]) -> str:
        text: str = self._backend.decode(tokens, skip_special_tokens=False)
        return text

    def _waiting_text(self) -> str:
        text = self._decode(self._context + self._waiting)
        if text.startswith(self._context_text):
            return text[len(self._context_text) :]
        # Byte tokens that are invalid with what follows: the text before them stands already.
        self._context, self._context_text = [], ""
        return self._decode(self._waiting)

    def _certain(self, text: str) -> tuple[int, str]:
        """How many waiting tokens, and which text of them, cannot change any more."""
        for count in range(len(self._waiting) - 1, 0, -1):
            rest = self._decode(self._waiting[count:])
            if (
                rest
                and text.endswith(rest)
                and self._decode(self._waiting[:count]) + rest == self._decode(self._waiting)
            ):
                return count, text.removesuffix(rest)
        return len(self._waiting), text

    def _emit(self, count: int, text: str) -> str:
        self._context, self._waiting = self._waiting[:count], self._waiting[count:]
        self._context_text = self._decode(self._context)
        return text
