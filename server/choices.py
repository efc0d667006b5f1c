"""The `choices` of both APIs: how a piece of text looks in a stream, and how pieces add up."""

from typing import Any, Protocol

from headway.server.generation import Piece, Started
from headway.server.logprobs import chat_logprobs, completion_logprobs, join_logprobs, prompt_logprobs
from headway.server.tokenizer import Tokenizer

Json = dict[str, Any]


class Choice(Protocol):
    """One sequence of an answer."""

    def start(self, event: Started) -> None:
        """The prompt is done."""
        ...

    def delta(self, piece: Piece) -> Json:
        """The choice of a stream's chunk for one token."""
        ...

    def whole(self, deltas: list[Json]) -> Json:
        """The choice of an answer that is no stream."""
        ...


class ChatChoice:
    """A choice of /v1/chat/completions. The role comes with the first token, so that no chunk precedes it."""

    def __init__(self, index: int, tokenizer: Tokenizer, logprobs: bool) -> None:
        self._index = index
        self._tokenizer = tokenizer
        self._logprobs = logprobs
        self._begun = False

    def start(self, event: Started) -> None:
        """Nothing of the prompt is shown."""

    def delta(self, piece: Piece) -> Json:
        """`choices[i]` of a chat.completion.chunk."""
        delta = {"content": piece.text} if self._begun else {"role": "assistant", "content": piece.text}
        self._begun = True
        return {
            "index": self._index,
            "delta": delta,
            "logprobs": chat_logprobs(self._tokenizer, piece) if self._logprobs else None,
            "finish_reason": piece.finish_reason,
        }

    def whole(self, deltas: list[Json]) -> Json:
        """`choices[i]` of a chat.completion."""
        content = "".join(delta["delta"]["content"] for delta in deltas)
        entries = [entry for delta in deltas if self._logprobs for entry in delta["logprobs"]["content"]]
        return {
            "index": self._index,
            "message": {"role": "assistant", "content": content, "refusal": None},
            "logprobs": {"content": entries, "refusal": None} if self._logprobs else None,
            "finish_reason": deltas[-1]["finish_reason"],
        }


class CompletionChoice:
    """A choice of /v1/completions; with `echo` its first piece brings the prompt along."""

    def __init__(
        self, index: int, tokenizer: Tokenizer, logprobs: bool, prompt: list[int] | None, prompt_text: str
    ) -> None:
        self._index = index
        self._tokenizer = tokenizer
        self._logprobs = logprobs
        self._prompt = prompt
        self._pending_text = self._prompt_text = prompt_text
        self._pending_logprobs: Json | None = None

    def start(self, event: Started) -> None:
        """Prepare what `echo` shows of the prompt; takes long for long prompts."""
        if self._prompt is not None and event.prompt_logprobs is not None:
            self._pending_logprobs = prompt_logprobs(
                self._tokenizer, self._prompt, self._prompt_text, event.prompt_logprobs
            )

    def delta(self, piece: Piece) -> Json:
        """`choices[i]` of a streamed text_completion."""
        logprobs = None
        if self._logprobs:
            logprobs = completion_logprobs(self._tokenizer, piece, len(self._prompt_text) + piece.offset)
            if self._pending_logprobs is not None:
                logprobs = join_logprobs([self._pending_logprobs, logprobs])
        text = self._pending_text + piece.text
        self._pending_text, self._pending_logprobs = "", None
        return {
            "index": self._index,
            "text": text,
            "logprobs": logprobs,
            "finish_reason": piece.finish_reason,
        }

    def whole(self, deltas: list[Json]) -> Json:
        """`choices[i]` of a text_completion."""
        return {
            "index": self._index,
            "text": "".join(delta["text"] for delta in deltas),
            "logprobs": join_logprobs([delta["logprobs"] for delta in deltas]) if self._logprobs else None,
            "finish_reason": deltas[-1]["finish_reason"],
        }
