"""What prefill methods are measured on: whole haystacks with questions behind them, or chunks of one."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
import typer
import yaml

from benchmarks.prefill_recall import watched
from benchmarks.prefill_sampling import Chunks, by_square, causal_pairs, total
from benchmarks.prefill_session import ChunkCost, PrefillSession
from benchmarks.windowed import windowed
from headway.engine.errors import ConfigError
from headway.engine.loaded import LoadedModel
from headway.engine.methods import prefill
from headway.engine.methods.prefill import AnyMethod
from headway.engine.needle.coding import Coder
from headway.engine.needle.evaluate import haystack
from headway.engine.needle.tasks import Tail
from headway.engine.request import Sequence

RECALL_CHUNKS = 3
"""Chunks per reading at which the recall is looked at: that takes longer than reading them."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What to measure.

    Attributes:
        count: questions per haystack.
        whole_up_to: longer prompts are timed by some of their chunks, over KV of the windowed pass.
        sampled: chunks of those, beside the ones around jumps.
        rounds: how often those are timed; shorter prompts are timed once per haystack.
    """

    tasks: list[str]
    count: int
    haystacks: int
    whole_up_to: int
    sampled: int
    rounds: int


@dataclass(slots=True)
class Tally:
    """Right answers among those asked."""

    right: int = 0
    asked: int = 0

    def add(self, answers: Iterable[bool]) -> None:
        """Count some more."""
        for answer in answers:
            self.right += answer
            self.asked += 1


@dataclass(slots=True, eq=False)
class Reader:
    """A way to read prompts, and what it came to: numbers a round, recalls a layer and chunk.

    Attributes:
        by_sample: seconds of whole readings as some of their chunks would have told.
        timed_chunks: first tokens of the chunks that were timed in the last round.
    """

    name: str
    method: AnyMethod | None = None
    seconds: list[float] = field(default_factory=list)
    attention: list[float] = field(default_factory=list)
    density: list[float] = field(default_factory=list)
    by_sample: list[float] = field(default_factory=list)
    recalls: list[float] = field(default_factory=list)
    timed_chunks: list[int] = field(default_factory=list)
    tallies: dict[str, Tally] = field(default_factory=dict)

    def note(self, chunks: Chunks, costs: dict[int, ChunkCost]) -> None:
        """Add a round of which the costs of some chunks are known."""
        self.timed_chunks = [chunks[i][0] for i in costs]
        self.seconds.append(total(chunks, {i: cost.seconds for i, cost in costs.items()}))
        self.attention.append(total(chunks, {i: cost.attention for i, cost in costs.items()}))
        pairs = total(chunks, {i: cost.pairs for i, cost in costs.items()})
        self.density.append(pairs / sum(causal_pairs(*chunk) for chunk in chunks))


def selecting() -> list[str]:
    """The methods beside dense, which is always measured."""
    return [name for name in prefill.names() if name != "dense"]


def reader(described: str, loaded: LoadedModel, page_size: int) -> Reader | None:
    """A reader by a method's name, or name:setting=value,…; None, and why, if it does not fit the model.

    Raises:
        typer.BadParameter: no such method, or a setting that it refuses.
    """
    name, _, changes = described.partition(":")
    if name not in selecting():
        raise typer.BadParameter(f"method: no {name!r} beside dense; there are {', '.join(selecting())}")
    settings: dict[str, Any] = {"method": name}
    for change in filter(None, changes.split(",")):
        key, _, value = change.partition("=")
        settings[key] = yaml.safe_load(value)
    schema, kind = prefill.load(name)
    try:
        method = kind(schema.model_validate(settings))
    except ValueError as error:
        raise typer.BadParameter(f"{described}: {error}") from None
    try:
        method.check(loaded.specs, page_size)
    except ConfigError as error:
        typer.echo(f"{described} is left out: {error}", err=True)
        return None
    return Reader(described, method)


Document = tuple[str, list[int], list[Tail]]
"""A haystack's task, its tokens, and questions behind it."""


def documents(context: int, plan: Plan) -> list[Document]:
    """The haystacks of a context."""
    coder = Coder()
    return [
        (task, *haystack(coder, task, context, index, plan.count, seed=4))
        for task in plan.tasks
        for index in range(plan.haystacks)
    ]


def transformers_seconds(session: PrefillSession, prompt: list[int], whole_up_to: int) -> float:
    """Of a prompt longer than `whole_up_to`, by its first eighth and quarter."""
    size = len(prompt)
    lengths = [size] if size <= whole_up_to else [size // 8, size // 4]
    return by_square(size, {length: session.transformers_seconds(prompt[:length]) for length in lengths})


def read_whole(
    session: PrefillSession, found: list[Document], readers: list[Reader], plan: Plan
) -> list[float]:
    """Every reader reads every haystack and is asked behind it; returns transformers' seconds."""
    plain = []
    for task, prefix, tails in found:
        prompt = prefix + tails[0][0]
        for item in readers:
            sequence = session.prompt(prompt, item.method)
            chunks = session.chunks(sequence)
            costs = {i: session.read_chunk(sequence, *chunk) for i, chunk in enumerate(chunks)}
            item.note(chunks, costs)
            some = session.sample(sequence, chunks, plan.sampled)
            item.by_sample.append(total(chunks, {i: costs[i].seconds for i in some}))
            look_closer(session, item, sequence, chunks, some)
            tally = item.tallies.setdefault(task, Tally())
            tally.add(session.is_right(prefix, ask, answer) for ask, answer in tails)
        plain.append(transformers_seconds(session, prompt, len(prompt)))
    return plain


def read_samples(
    session: PrefillSession, prompt: list[int], readers: list[Reader], plan: Plan
) -> list[float]:
    """Every reader reads some chunks of one prompt, all the others' KV being there; transformers' seconds."""
    sequences = [session.prompt(prompt, item.method) for item in readers]
    layouts = [session.chunks(sequence) for sequence in sequences]
    some = [
        session.sample(sequence, chunks, plan.sampled)
        for sequence, chunks in zip(sequences, layouts, strict=True)
    ]
    for parts in zip(readers, sequences, layouts, some, strict=True):
        look_closer(session, *parts)
    in_turn = sorted((layouts[number][i][0], number, i) for number, picked in enumerate(some) for i in picked)
    plain = []
    for _ in range(plan.rounds):
        costs: list[dict[int, ChunkCost]] = [{} for _ in readers]
        for _, number, i in in_turn:
            costs[number][i] = session.read_chunk(sequences[number], *layouts[number][i])
        for item, chunks, known in zip(readers, layouts, costs, strict=True):
            item.note(chunks, known)
        plain.append(transformers_seconds(session, prompt, plan.whole_up_to))
    return plain


def look_closer(
    session: PrefillSession, item: Reader, sequence: Sequence, chunks: Chunks, some: list[int]
) -> None:
    """Read some chunks again and see what attention mass the method catches where it selects."""
    if item.method is None or sequence.prefill is None:
        return
    sparse = [i for i in some if sum(chunks[i]) > item.method.settings.dense_below]
    step = -(-len(sparse) // RECALL_CHUNKS)
    with watched(item.method) as caught:
        for i in sparse[::step]:
            session.read_chunk(sequence, *chunks[i])
    item.recalls += caught


def fill(session: PrefillSession, context: int, found: list[Document]) -> list[int]:
    """Bring the last haystack's KV into the cache, or random KV where there is none; returns a prompt."""
    if found:
        _, prefix, tails = found[-1]
        prompt = prefix + tails[0][0]
        session.fill(windowed(prompt))
        return prompt
    session.fill_randomly(context)
    return torch.randint(10, session.loaded.vocab_size, (context,)).tolist()
