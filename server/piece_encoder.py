"""Encodes a rendered conversation: control tokens of the template as such, spelled ones as text."""

from collections.abc import Sequence

from tokenizers import Tokenizer

from headway.engine.errors import RequestError

BATCH = 256


def encode_texts(backend: Tokenizer, texts: Sequence[str], add_special_tokens: bool) -> list[list[int]]:
    """Token ids of each text; control tokens in it count as such.

    Raises:
        RequestError: a text holds a lone surrogate.
    """
    try:
        # Unlike encode, encode_batch_fast gives up Python's lock, but for handing over its results.
        return [
            encoding.ids
            for start in range(0, len(texts), BATCH)
            for encoding in backend.encode_batch_fast(
                texts[start : start + BATCH], add_special_tokens=add_special_tokens
            )
        ]
    except TypeError as error:
        raise RequestError("the text holds a lone surrogate, which is no character") from error


def encode_pieces(backend: Tokenizer, pieces: Sequence[tuple[str, bool]]) -> list[int]:
    """Token ids of pieces of one text; True marks a control token that is spelled, not meant.

    Raises:
        RequestError: the text holds a lone surrogate.
    """
    if not pieces:
        return []
    names = {text for text, is_spelled in pieces if is_spelled}
    spelled = {name: _encode_spelled(backend, name) for name in names}
    [(first, first_is_spelled), *rest] = pieces
    ids = list(spelled[first]) if first_is_spelled else encode_texts(backend, [first], False)[0]
    plain = iter(_encode_inside(backend, [text for text, is_spelled in rest if not is_spelled]))
    for text, is_spelled in rest:
        ids += spelled[text] if is_spelled else next(plain)
    return ids


def _encode_inside(backend: Tokenizer, texts: list[str]) -> list[list[int]]:
    """Each text as it is encoded inside a longer one: SentencePiece puts a space before a first word."""
    [newline, *behind_newline] = encode_texts(backend, ["\n", *("\n" + text for text in texts)], False)
    return [
        ids[len(newline) :] if ids[: len(newline)] == newline else encode_texts(backend, [text], False)[0]
        for ids, text in zip(behind_newline, texts, strict=True)
    ]


def _encode_spelled(backend: Tokenizer, token: str) -> list[int]:
    ids = _encode_words_inside(backend, token)
    if backend.token_to_id(token) not in ids:
        return ids
    # Some vocabularies list it among the words as well; its two parts are not.
    return [*_encode_words_inside(backend, token[0]), *_encode_words_inside(backend, token[1:])]


def _encode_words_inside(backend: Tokenizer, text: str) -> list[int]:
    newline, ids = _encode_words(backend, "\n"), _encode_words(backend, "\n" + text)
    return ids[len(newline) :] if ids[: len(newline)] == newline else _encode_words(backend, text)


def _encode_words(backend: Tokenizer, text: str) -> list[int]:
    """Token ids without looking for control tokens."""
    normalizer, pre_tokenizer = backend.normalizer, backend.pre_tokenizer
    if normalizer is not None:
        text = normalizer.normalize_str(text)
    words = [text] if pre_tokenizer is None else [word for word, _ in pre_tokenizer.pre_tokenize_str(text)]
    return [token.id for word in words for token in backend.model.tokenize(word)]
