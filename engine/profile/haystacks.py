"""Haystacks: long texts with facts in them and questions about those facts, in a model's own tokens.

needle gets the texts it is evaluated on; every other model gets grammatical prose with passkeys, worded as in
RULER (arXiv 2404.06654), and questions whose answer's opening is given, so that base models answer, too.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

from transformers import AutoTokenizer

from headway.engine.errors import ConfigError
from headway.engine.loaded import LoadedModel
from headway.engine.needle import WEIGHTS
from headway.engine.needle.coding import Coder
from headway.engine.needle.evaluate import haystack as needle_haystack
from headway.engine.needle.tasks import Spec, make

NEEDLE_TASKS = ("single", "many_keys", "key_value")
PASSKEYS = Spec(keys="pair", needles="ruler", filler="prose", separator=" ")
ASK = "\nWhat is the special magic number for {key} mentioned in the provided text?"
OPENING = " The special magic number for {key} mentioned in the provided text is:"


@dataclass(frozen=True, slots=True)
class Question:
    """A question about one fact.

    Attributes:
        ask: token ids after the haystack, up to where the answer begins.
        answer: token ids of the fact's value, as they stand in the haystack.
        places: where they stand.
    """

    ask: list[int]
    answer: list[int]
    places: range


@dataclass(frozen=True, slots=True)
class Haystack:
    """A text and the questions about it, to be put to it one by one, or one after the other.

    Attributes:
        between: token ids that stand between an answer and the next question then.
    """

    ids: list[int]
    questions: list[Question]
    between: tuple[int, ...] = ()


Maker = Callable[[int, int, int, int], Haystack]
"""(length, index, questions, seed) → haystack `index` of a seed, at most `length` tokens with a question;
questions: at most this many."""


def maker(loaded: LoadedModel) -> Maker:
    """What makes haystacks for a model.

    Raises:
        ConfigError: the model has no tokenizer that can tell which characters a token covers.
    """
    source = str(loaded.model.name_or_path)
    tokens = Path(source) / "tokenizer.json"
    if tokens.is_file() and tokens.read_bytes() == (WEIGHTS / "tokenizer.json").read_bytes():
        return _needle
    tokenizer = _tokenizer(source, getattr(loaded.model.config, "_commit_hash", None))

    def make_haystack(length: int, index: int, questions: int, seed: int) -> Haystack:
        return _passkeys(tokenizer, length, index, questions, seed)

    return make_haystack


@cache
def _coder() -> Coder:
    return Coder()


def _needle(length: int, index: int, questions: int, seed: int) -> Haystack:
    task = NEEDLE_TASKS[index % len(NEEDLE_TASKS)]
    ids, tails = needle_haystack(_coder(), task, length, index // len(NEEDLE_TASKS), questions, seed)
    found = []
    for ask, (*answer, _end) in tails:
        at = _find(answer, ids)
        if at is not None:
            found.append(Question(ask, answer, range(at, at + len(answer))))
    return Haystack(ids, found, (_coder().end, _coder().user))


def _find(part: list[int], ids: list[int]) -> int | None:
    return next((at for at in range(len(ids) - len(part) + 1) if ids[at : at + len(part)] == part), None)


def _tokenizer(source: str, revision: str | None) -> Any:
    try:
        tokenizer = AutoTokenizer.from_pretrained(source, revision=revision or "main")
    except (OSError, ValueError) as error:
        raise ConfigError(f"haystacks need the model's tokenizer, but {source} has none: {error}") from error
    if not tokenizer.is_fast:
        raise ConfigError(f"haystacks need a tokenizer with offsets; {type(tokenizer).__name__} has none")
    return tokenizer


def _passkeys(tokenizer: Any, length: int, index: int, questions: int, seed: int) -> Haystack:
    # The text's length is planned in needle's tokens: it shrinks until it fits in the model's own.
    planned = length
    while True:
        rng = Random(f"passkeys {seed} {length} {index}")
        spec = Spec(**{**vars(PASSKEYS), "count": questions, "questions": questions})
        sample = make(rng, _coder(), planned, spec)
        haystack = _encoded(tokenizer, "".join(sample.context), sample.questions)
        longest = len(haystack.ids) + max((len(q.ask) + len(q.answer) for q in haystack.questions), default=0)
        if longest <= length:
            return haystack
        planned = min(int(planned * length / longest), planned - 1)
        if planned < 64:
            raise ConfigError(f"length: {length} tokens do not hold a text with a question")


def _encoded(tokenizer: Any, text: str, asked: list[Any]) -> Haystack:
    encoded = tokenizer(text, return_offsets_mapping=True)
    ids, offsets = list(encoded["input_ids"]), encoded["offset_mapping"]
    questions = []
    for question in asked:
        (key,), value = question.keys, question.answer[0]
        fact = f"{key} is: {value}"
        end = text.index(f"{fact}.") + len(fact)
        begin = end - len(value) - 1
        inside = [at for at, (first, last) in enumerate(offsets) if begin <= first < last <= end]
        if not inside:
            continue
        places = range(inside[0], inside[-1] + 1)
        ask = tokenizer((ASK + OPENING).format(key=key), add_special_tokens=False)["input_ids"]
        questions.append(Question(list(ask), ids[places.start : places.stop], places))
    return Haystack(ids, questions)
