"""Filler text and keys for needle's tasks, as pieces."""

import pydoc_data.topics
import re
import uuid
from functools import cache
from random import Random

from headway.engine.needle import phrases
from headway.engine.needle.coding import Coder, Pieces

_SLOT = re.compile(r"( ?\{[a-z]\}s?)")
_SYLLABLES = [
    c + v
    for c in [
        "b",
        "c",
        "d",
        "f",
        "g",
        "h",
        "j",
        "k",
        "l",
        "m",
        "n",
        "p",
        "r",
        "s",
        "t",
        "v",
        "w",
        "z",
        "br",
        "cr",
        "dr",
        "st",
        "tr",
    ]
    for v in "aeiou"
]


@cache
def _parts(template: str) -> list[str]:
    return [part for part in _SLOT.split(template) if part]


def lead(pieces: Pieces) -> Pieces:
    """The pieces with a space before them; a number keeps the space as a token of its own."""
    first, *rest = pieces
    return [" ", *pieces] if first[0].isdigit() else [" " + first, *rest]


def fill(template: str, **slots: Pieces) -> Pieces:
    """Puts pieces into the slots of a template."""
    out: Pieces = []
    for part in _parts(template):
        if "{" not in part:
            out.append(part)
            continue
        name = part[part.index("{") + 1]
        value = slots[name]
        if part.endswith("s"):
            value = [*value[:-1], value[-1] + "s"]
        out += lead(value) if part[0] == " " else value
    return out


def number(rng: Random, digits: int | None = None) -> str:
    """A value: 6, 7 or 9 digits mostly, seldom another length."""
    digits = digits or rng.choice((6, 7, 9) if rng.random() < 0.8 else (3, 4, 5, 8, 10, 12))
    return str(rng.randrange(10 ** (digits - 1), 10**digits))


def pseudo_word(rng: Random) -> str:
    """A pronounceable word that no list contains."""
    return "".join(rng.choice(_SYLLABLES) for _ in range(rng.randint(2, 4)))


def key(rng: Random, kind: str) -> Pieces:
    """A key of one kind: noun, pair, hyphen, name, numbered or uuid."""
    noun = rng.choice(phrases.NOUNS)
    if kind == "noun":
        return [noun]
    if kind == "pair":
        return [rng.choice(phrases.ADJECTIVES), " " + noun]
    if kind == "hyphen":
        return [rng.choice(phrases.ADJECTIVES), "-", noun]
    if kind == "numbered":
        return [noun, " ", number(rng, rng.randint(1, 3))]
    if kind == "name":
        names = [pseudo_word(rng) for _ in range(rng.choice((1, 1, 2)))]
        case = str.capitalize if rng.random() < 0.7 else str.lower
        return [case(names[0]), *(" " + case(n) for n in names[1:])]
    assert kind == "uuid", kind
    return [str(uuid.UUID(int=rng.getrandbits(128), version=4))]


def clause(rng: Random) -> Pieces:
    """One grammatical, meaningless sentence."""
    out: Pieces = []
    for part in _parts(rng.choice(phrases.CLAUSES)):
        if "{" not in part:
            out.append(part)
            continue
        name = part[part.index("{") + 1]
        if name == "m":
            word = str(rng.randint(2, 999) if rng.random() < 0.9 else rng.randint(1000, 999999))
        else:
            lists = {"a": phrases.ADJECTIVES, "n": phrases.NOUNS, "w": phrases.VERBS, "p": phrases.PLACES}
            word = rng.choice(lists.get(name, phrases.TIMES))
        word += "s" if part.endswith("s") else ""
        out += lead([word]) if part[0] == " " else [word]
    return out


@cache
def english() -> list[str]:
    """Lines of real English and code: the Python language reference."""
    lines = (line.strip() for topic in pydoc_data.topics.topics.values() for line in topic.splitlines())
    return [line for line in lines if line]


def filler(rng: Random, coder: Coder, kind: str, budget: int, gap: int = 1) -> list[Pieces]:
    """Units of filler that cost about `budget` tokens, a separator of `gap` tokens each included.

    Kind: noise, prose, english, junk or none.
    """
    units: list[Pieces] = []
    start = rng.randrange(len(english()))
    while kind != "none" and budget > 0:
        n = len(units)
        if kind == "noise":
            unit = [phrases.NOISE[n % len(phrases.NOISE)]]
        elif kind == "prose":
            unit = clause(rng)
        elif kind == "english":
            unit = [english()[(start + n) % len(english())]]
        else:
            letters = (
                "abcdefghijklmnopqrstuvwxyz" if rng.random() < 0.7 else "ABCDxyz0123456789-_/.()éßжлш中文字"
            )
            words = ["".join(rng.choices(letters, k=rng.randint(1, 9))) for _ in range(rng.randint(3, 12))]
            unit = [" ".join(words) + rng.choice(".,;:! ").strip()]
        budget -= len(coder.ids(unit)) + gap
        units.append(unit)
    return units
