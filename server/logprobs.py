"""Log-probabilities in OpenAI's two forms."""

from typing import Any

from headway.engine.messages import Logprob
from headway.server.generation import Piece
from headway.server.tokenizer import Tokenizer

Json = dict[str, Any]

LOWEST = -9999.0
"""What stands for minus infinity, which JSON cannot hold."""


def chat_logprobs(tokenizer: Tokenizer, piece: Piece) -> Json:
    """`logprobs` of a chat choice for one token."""
    if piece.logprob is None:
        return {"content": [], "refusal": None}
    entry = _chat_entry(tokenizer, piece.token, piece.logprob.logprob)
    entry["top_logprobs"] = [_chat_entry(tokenizer, token, value) for token, value in piece.logprob.top]
    return {"content": [entry], "refusal": None}


def completion_logprobs(tokenizer: Tokenizer, piece: Piece, offset: int) -> Json:
    """`logprobs` of a text completion for one token that begins `offset` characters into the text."""
    return {
        "tokens": [tokenizer.token_text(piece.token)],
        "token_logprobs": [_finite(piece.logprob.logprob) if piece.logprob else None],
        "top_logprobs": [_alternatives(tokenizer, piece.token, piece.logprob)],
        "text_offset": [offset],
    }


def prompt_logprobs(
    tokenizer: Tokenizer, prompt: list[int], text: str, logprobs: list[Logprob | None]
) -> Json:
    """`logprobs` of a prompt that is echoed as `text`; its first token has none: nothing comes before it."""
    return {
        "tokens": [tokenizer.token_text(token) for token in prompt],
        "token_logprobs": [_finite(entry.logprob) if entry else None for entry in logprobs],
        "top_logprobs": [
            _alternatives(tokenizer, token, entry) for token, entry in zip(prompt, logprobs, strict=True)
        ],
        "text_offset": tokenizer.offsets(prompt, text),
    }


def join_logprobs(parts: list[Json]) -> Json:
    """Text completions' `logprobs`, one after the other."""
    return {key: [item for part in parts for item in part[key]] for key in parts[0]}


def _chat_entry(tokenizer: Tokenizer, token: int, logprob: float) -> Json:
    raw = tokenizer.token_bytes(token)
    return {"token": tokenizer.token_text(token), "bytes": list(raw), "logprob": _finite(logprob)}


def _alternatives(tokenizer: Tokenizer, token: int, logprob: Logprob | None) -> dict[str, float] | None:
    """Best first. Of tokens with the same text the best one stays: a greedy token is still the maximum."""
    if logprob is None:
        return None
    result: dict[str, float] = {}
    for other, value in [*logprob.top, (token, logprob.logprob)]:
        result.setdefault(tokenizer.token_text(other), _finite(value))
    return result


def _finite(logprob: float) -> float:
    return max(logprob, LOWEST)
