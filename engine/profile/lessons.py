"""Lessons: the texts by which gates and routers are trained, with questions answered at the end."""

from random import Random
from typing import Self

from pydantic import Field, model_validator

from headway.engine.config_section import Positive, Section
from headway.engine.profile.haystacks import Haystack, Maker

QUESTION_TOKENS = 40
"""Room for a question and its answer, about."""


class LessonSettings(Section):
    """Which texts are read, and what of them a KV head reads that does not read everything."""

    seed: int = 0
    steps: Positive
    shortest: Positive = Field(1024, description="Tokens of the shortest text.")
    longest: Positive = Field(4096, description="Tokens of the longest one.")
    lengths: Positive = Field(50, description="Different lengths, evenly spaced.")
    passkeys: Positive = Field(10, description="Facts that are asked for at the end of a text.")
    sink_size: int = Field(64, ge=0, description="First tokens that streaming heads read.")
    window_size: Positive = Field(256, description="Tokens before a tile that they read.")
    tile: Positive = Field(128, description="Queries that share a window.")
    recompute: bool = Field(
        False, description="Compute layers again in the backward pass: less memory, more time."
    )

    @model_validator(mode="after")
    def _long_enough(self) -> Self:
        least = self.sink_size + self.window_size + self.tile
        if not least < self.shortest <= self.longest:
            raise ValueError(
                f"shortest must lie above {least}, what streaming heads read, and not above "
                f"longest = {self.longest}; it is {self.shortest}"
            )
        return self


def lesson_of(make: Maker, settings: LessonSettings, kind: str, number: int) -> tuple[list[int], list[int]]:
    """Lesson `number` of a kind of profile: token ids, and the rows that answer."""
    rng = Random(f"{kind} {settings.seed} {number}")
    length = settings.shortest + (settings.longest - settings.shortest) * rng.randrange(
        settings.lengths
    ) // max(1, settings.lengths - 1)
    room = min(settings.passkeys * QUESTION_TOKENS, length // 2)
    return lesson(make(length - room, number, settings.passkeys, settings.seed), length)


def lesson(text: Haystack, length: int) -> tuple[list[int], list[int]]:
    """A text with its questions answered at the end, in at most `length` tokens, and the rows that answer."""
    ids = list(text.ids)
    rows: list[int] = []
    for number, question in enumerate(text.questions):
        turn = [*(text.between if number else ()), *question.ask]
        if number and len(ids) + len(turn) + len(question.answer) > length:
            break
        ids += turn
        rows += range(len(ids) - 1, len(ids) - 1 + len(question.answer))
        ids += question.answer
    return ids, rows
