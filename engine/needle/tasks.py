"""Needle's tasks: a haystack, facts in it, questions about them. The same generator trains and evaluates."""

from dataclasses import dataclass, field, replace
from itertools import pairwise
from random import Random

from headway.engine.needle import phrases
from headway.engine.needle.coding import Coder, Pieces
from headway.engine.needle.haystacks import fill, filler, key, lead, number


@dataclass
class Question:
    """One user turn and its answer; `prefix` is assistant text given, `keys` what is asked about."""

    ask: Pieces
    answer: Pieces
    prefix: Pieces = field(default_factory=list)
    keys: frozenset[str] = frozenset()


@dataclass
class Sample:
    """A chat: optional system turn, a haystack in the first user turn, questions."""

    context: Pieces
    questions: list[Question]
    system: Pieces = field(default_factory=list)
    joint: str = "\n"
    question_first: bool = False
    chat: bool = True


Tail = tuple[list[int], list[int]]
"""Ids after the haystack: question with the opening of the answer's turn, and answer with the end token."""


@dataclass(frozen=True)
class Spec:
    """What to generate.

    Attributes:
        count: keys, or None for as many as `density` of the room holds.
        values_per_key: of each key; at most so many where they are `uneven`.
        wordings: needle and question templates of one sample; 0: one or three.
    """

    keys: str = "noun"
    needles: str = "line"
    filler: str = "none"
    separator: str = "\n"
    count: int | None = None
    density: float = 1.0
    values_per_key: int = 1
    uneven: bool = False
    queries: int = 1
    hops: int = 0
    questions: int = 1
    question_share: float = 0.0
    layout: str = "plain"
    digits: int | None = None
    restate: float = 0.0
    distant: float = 0.0
    wordings: int = 0


def _named(pairs: list[tuple[Pieces, str]]) -> Pieces:
    out: Pieces = []
    for k, value in pairs:
        # What opens the answer costs no thought, and every key is the token that the question has.
        out += ["," if out else "For", *lead(k), ":", *lead([value])]
    return out


def _lines(items: list[str]) -> Pieces:
    # Behind each line end is either the next item or, where all are said, the end of the answer.
    return [piece for item in items for piece in (item, "\n")]


def _joined(keys: list[Pieces]) -> Pieces:
    out = list(keys[0])
    for i, k in enumerate(keys[1:], 2):
        out += [" and", *lead(k)] if i == len(keys) else [",", *lead(k)]
    return out


def _styles(rng: Random, spec: Spec) -> tuple[list[str], list[str], str]:
    """Needle templates and question templates of one sample, and the type word."""
    kind = rng.choice(phrases.TYPES)
    asks: list[str] | None = None
    if spec.layout == "short":
        # One distance from key to value, in needles as in questions: the first thing to learn.
        needles, asks = [rng.choice(phrases.LINES[:2])], [rng.choice(phrases.SHORT_QUESTIONS[:3])]
    elif spec.needles == "line":
        needles = [rng.choice(phrases.LINES)]
        asks = rng.sample(phrases.SHORT_QUESTIONS, 1) if rng.random() < 0.3 else None
    else:
        needles = rng.sample(phrases.SENTENCES, 1 if rng.random() < 0.6 else 3)
    if spec.needles == "ruler":
        needles, kind = phrases.SENTENCES[:1], "special magic number"
    if spec.wordings:
        needles = rng.sample(phrases.LINES if spec.needles == "line" else phrases.SENTENCES, spec.wordings)
    if asks is None:
        source = phrases.QUESTIONS if spec.values_per_key * spec.queries == 1 else phrases.MANY_QUESTIONS
        asks = rng.sample(source, 1 if rng.random() < 0.5 else 3)
        if source is phrases.QUESTIONS and rng.random() < spec.distant:
            asks = rng.sample(phrases.DISTANT_QUESTIONS, 1)
        elif spec.wordings:
            asks = rng.sample(source, spec.wordings)
    if any("special magic" in n for n in needles) and rng.random() < 0.8:
        kind = "special magic number"
    return [n.replace("{t}", kind) for n in needles], [a.replace("{t}", kind) for a in asks], kind


def assemble(rng: Random, spec: Spec, needles: list[Pieces], fillers: list[Pieces]) -> Pieces:
    """Needles at random depths between the filler units, in their order."""
    units = fillers
    if needles and fillers:
        at = sorted(rng.choices(range(len(fillers) + 1), k=len(needles)))
        units, done = [], 0
        for needle, depth in zip(needles, at, strict=True):
            units += [*fillers[done:depth], needle]
            done = depth
        units += fillers[done:]
    elif needles:
        units = needles
    context: Pieces = []
    for i, unit in enumerate(units):
        if not i:
            context += unit
        elif spec.separator == " ":
            context += lead(unit)
        else:
            context += [spec.separator, *unit]
    return context


def _frame(rng: Random, spec: Spec, sample: Sample) -> Sample:
    """Adds a system turn, an introduction and other wordings around the context."""
    if spec.layout != "free":
        return sample
    if rng.random() < 0.5:
        sample.context = [rng.choice(phrases.INTROS), rng.choice(("\n", "\n\n")), *sample.context]
    if rng.random() < 0.2:
        sample.context += [rng.choice(("\n", "\n\n")), rng.choice(phrases.OUTROS)]
    if rng.random() < 0.2:
        sample.system = [rng.choice(phrases.SYSTEMS)]
    sample.joint = rng.choice(("\n", "\n\n", "\n", " ")) if sample.questions[0].ask[0][0].isalpha() else "\n"
    sample.question_first = rng.random() < 0.05
    sample.chat = rng.random() < 0.93
    return sample


def retrieval(rng: Random, coder: Coder, length: int, spec: Spec) -> Sample:
    """Keys with values in a haystack; the whole chat costs at most `length` tokens."""
    templates, asks, kind = _styles(rng, spec)
    room = int((length - 8) * (1 - spec.question_share)) - (60 if spec.layout == "free" else 0)
    if not spec.question_share:
        room -= 40 * (spec.values_per_key + spec.queries)
    many = spec.values_per_key > 1
    gap = len(coder.ids([spec.separator]))
    table: dict[tuple[str, ...], list[str]] = {}
    needles: list[Pieces] = []
    used, limit = 0, max(room * spec.density, 1)
    misses = 0
    while used < limit and misses < 50 and (spec.count is None or len(table) < spec.count):
        k = key(rng, spec.keys)
        if tuple(k) in table:
            misses += 1
            continue
        count = rng.randint(1, spec.values_per_key) if spec.uneven else spec.values_per_key
        values = [number(rng, spec.digits) for _ in range(count)]
        units = [fill(rng.choice(templates), k=k, v=[v]) for v in values]
        cost = sum(len(coder.ids(u)) + gap for u in units)
        if table and used + cost > room:
            break
        table[tuple(k)] = values
        needles += units
        used += cost
    rng.shuffle(needles)
    # Where the keys run out, prose fills the rest.
    kind_of_filler = "prose" if spec.filler == "none" and misses >= 50 else spec.filler
    fillers = filler(rng, coder, kind_of_filler, room - used, gap)
    context = assemble(rng, spec, needles, fillers)
    while fillers and len(coder.ids(context)) > room + 8:
        fillers = fillers[: -1 - len(fillers) // 100]
        context = assemble(rng, spec, needles, fillers)

    def questions(n: int) -> list[Question]:
        keys = list(table)
        rng.shuffle(keys)
        out = []
        for i in range(n):
            if spec.queries > 1:
                chosen = rng.sample(keys, min(spec.queries, len(keys)))
            else:
                chosen = [keys[i % len(keys)]]
            # Values of one key in any order: haystack tokens need not know which came first.
            pairs = [(list(k), v) for k in chosen for v in rng.sample(table[k], len(table[k]))]
            answer = _named(pairs) if spec.queries > 1 else [pairs[0][1]]
            if many:
                answer = _lines([v for _, v in pairs])
            q = Question(fill(rng.choice(asks), k=_joined([list(k) for k in chosen])), answer)
            lesson = rng.random() if spec.layout == "short" else 1.0
            if lesson < 0.25:
                # Value to key: teaches values to carry their keys.
                q = Question(fill(rng.choice(asks), k=[pairs[0][1]]), pairs[0][0])
            elif lesson < 0.5:
                # The whole line: teaches the end of a question to carry its key.
                q = Question(fill('"{k}"', k=pairs[0][0]), fill(templates[0], k=pairs[0][0], v=[pairs[0][1]]))
            opening = templates[0].partition("{v}")[0].rstrip()
            alone = spec.queries == 1 and not many
            if lesson > 0.5 and alone and "{k}" in opening and rng.random() < spec.restate:
                q.prefix = fill(opening, k=list(chosen[0]))
                if templates[0].partition("{v}")[0].endswith(" "):
                    q.answer = lead(q.answer)
            elif spec.layout == "free" and alone and rng.random() < 0.1:
                q.prefix = fill(
                    rng.choice(phrases.PREFIXES).replace("{t}", kind), k=_joined([list(k) for k in chosen])
                )
                q.answer = lead(q.answer)
            q.keys = frozenset("".join(k) for k in chosen)
            out.append(q)
        return out

    n = spec.questions
    if spec.question_share:
        n = max(2 * len(table), 8) if spec.layout != "short" else max(len(table), 4)
        n = min(n, max(8, int(spec.question_share * length / 16)))
    sample = Sample(context, questions(n))
    return _frame(rng, spec, sample)


def tracking(rng: Random, coder: Coder, length: int, spec: Spec) -> Sample:
    """Variable tracking: chains of assignments; the question asks for all names that share a value."""
    room = int((length - 24) * (1 - spec.question_share)) - 80
    line, ask = rng.choice(phrases.VT_LINES), rng.choice(phrases.VT_QUESTIONS)
    cost = 13
    hops = min(spec.hops, max(1, room // cost - 1))
    chains = max(1, min(spec.count or 1, room // (cost * (hops + 1))))
    names: set[str] = set()
    while len(names) < chains * (hops + 1):
        names.add("".join(rng.choices("ABCDEFGHIJKLMNOPQRSTUVWXYZ", k=5)))
    pool = sorted(names)
    rng.shuffle(pool)
    queues, facts = [], []
    for c in range(chains):
        chain, value = pool[c * (hops + 1) : (c + 1) * (hops + 1)], number(rng, 5)
        head = line.replace("VAR {y}", "{y}")
        units = [fill(head, x=[chain[0]], y=[value])]
        units += [fill(line, x=[b], y=[a]) for a, b in pairwise(chain)]
        queues.append(units)
        facts.append((value, chain))
    needles: list[Pieces] = []
    while any(queues):
        needles.append(rng.choice([q for q in queues if q]).pop(0))
    used = sum(len(coder.ids(u)) + 1 for u in needles)
    context = assemble(rng, spec, needles, filler(rng, coder, spec.filler, room - used))
    rng.shuffle(facts)
    questions = [Question(fill(ask, v=[value]), _lines(chain)) for value, chain in facts]
    sample = Sample(context, questions if spec.question_share else questions[: spec.questions])
    return _frame(rng, replace(spec, layout="free" if spec.layout == "free" else "plain"), sample)


def make(rng: Random, coder: Coder, length: int, spec: Spec) -> Sample:
    """A sample of the task `spec` describes."""
    return (tracking if spec.hops else retrieval)(rng, coder, length, spec)


def encode(
    sample: Sample, coder: Coder, length: int | None = None
) -> tuple[list[int], list[tuple[int, int]]]:
    """Ids of the chat and the half-open spans of its answers, end token included; stops before `length`."""
    ids: list[int] = []
    if sample.system and sample.chat:
        ids += [coder.system, *coder.ids(sample.system), coder.end]
    spans: list[tuple[int, int]] = []
    for i, q in enumerate(sample.questions):
        ask = coder.ids(q.ask)
        if i == 0:
            context, joint = coder.ids(sample.context), coder.ids([sample.joint])
            if sample.question_first:
                ask = [*ask, *coder.ids(["\n"]), *context]
            elif sample.joint == " ":
                ask = [*context, *coder.ids(lead(q.ask))]
            else:
                ask = [*context, *joint, *ask]
        turn = [coder.user, *ask, coder.end, coder.assistant, *coder.ids(q.prefix)]
        if not sample.chat:
            glue = ["\nAnswer:"] if not q.prefix else lead(q.prefix)
            turn = [*(coder.ids(["\n"]) if i else []), *ask, *coder.ids(glue)]
        answer = coder.ids(q.answer if sample.chat or q.prefix else lead(q.answer))
        if length is not None and len(ids) + len(turn) + len(answer) + 1 > length:
            break
        ids += turn
        spans.append((len(ids), len(ids) + len(answer) + 1))
        ids += [*answer, coder.end]
    return ids, spans


def split(coder: Coder, sample: Sample, questions: list[Question]) -> tuple[list[int], list[Tail]]:
    """Ids of a chat's haystack and, per question with an answer of its own, the ids after it."""
    opening = [coder.system, *coder.ids(sample.system), coder.end] if sample.system else []
    spaced = sample.joint == " "
    joint = [] if spaced else coder.ids([sample.joint])
    prefix = [*opening, coder.user, *coder.ids(sample.context), *joint]
    tails = []
    for question in {tuple(sorted(q.answer)): q for q in questions}.values():
        ask = coder.ids(lead(question.ask) if spaced else question.ask)
        turn = [*ask, coder.end, coder.assistant, *coder.ids(question.prefix)]
        tails.append((turn, [*coder.ids(question.answer), coder.end]))
    return prefix, tails
