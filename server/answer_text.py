"""AnswerText: the text of one answer, token by token."""

from collections.abc import Sequence

from headway.server.sampling import TextOptions
from headway.server.stop_strings import StopStrings
from headway.server.tokenizer import Tokenizer


class AnswerText:
    """Detokenises, and stops at stop strings once `min_tokens` have come.

    Attributes:
        length: characters so far, those included that may still become part of a stop string.
    """

    def __init__(self, tokenizer: Tokenizer, prompt: Sequence[int], options: TextOptions) -> None:
        self._detokenizer = tokenizer.detokenizer(prompt, options.skip_special_tokens)
        self._stops = StopStrings(options.stop, options.include_stop)
        self._include_stop = options.include_stop
        self._unstoppable = options.min_tokens
        self.length = 0

    @property
    def stopped(self) -> bool:
        """Whether a stop string has ended the text."""
        return self._stops.stop is not None

    def push(self, token: int, *, last: bool, is_stop: bool) -> str:
        """The text that `token` makes certain; a stop token shows only with `include_stop`."""
        text = "" if is_stop and not self._include_stop else self._detokenizer.push([token])
        if last:
            text += self._detokenizer.flush()
        self.length += len(text)
        self._unstoppable -= 1
        if self._unstoppable > 0:
            return text
        text = self._stops.push(text)
        return text + self._stops.flush() if last and not self.stopped else text
