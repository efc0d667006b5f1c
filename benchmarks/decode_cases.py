"""What decode methods are measured on: questions, one long answer, and timed steps over one document."""

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import torch
import typer
from transformers import GenerationConfig

from benchmarks.decode_session import Session, Steps
from benchmarks.recall import Caught, watched
from benchmarks.windowed import windowed
from headway.engine.errors import ConfigError
from headway.engine.loaded import LoadedModel
from headway.engine.methods import decode
from headway.engine.methods.decode import AnyMethod
from headway.engine.needle.coding import Coder
from headway.engine.needle.evaluate import haystack
from headway.engine.needle.tasks import Tail
from headway.engine.selection.settings import BudgetSettings

ROOM = 1024
"""Tokens kept free behind a haystack for a question and its answer."""
RECALL_QUESTIONS = 2
"""Questions per task at which the recall is looked at: that takes longer than the answer."""
SEES_ALL_CONTEXT, SEES_ALL_QUESTIONS = 8192, 4
"""Limits for methods that must prefill the whole prompt themselves."""


@dataclass(frozen=True, slots=True)
class Variant:
    """One method with one budget."""

    name: str
    budget: int
    method: AnyMethod


def variants(
    loaded: LoadedModel, budgets: list[int], names: list[str], others: dict[str, Any]
) -> list[Variant]:
    """The named methods with every budget; what has none gets it as its window. `others`: settings to add."""
    found = []
    for name in names:
        schema, kind = decode.load(name)
        for budget in budgets:
            settings: dict[str, Any] = {
                "method": name,
                "dense_below": 0,
                "dense_layers": 0,
                "window_size": 128,
            }
            if issubclass(schema, BudgetSettings):
                settings["budget"] = budget
            else:
                settings["window_size"] = budget - 64
            method = kind(schema.model_validate(settings | others))
            try:
                method.check(loaded.specs, 64)
            except ConfigError as error:
                typer.echo(f"{name} is left out: {error}", err=True)
                continue
            found.append(Variant(name, budget, method))
    return found


def generate_seconds(session: Session, prompt: list[int], steps: int) -> list[float]:
    """Seconds a token of transformers' `generate()` with SDPA, its cache filled from our pages."""
    with session.detached() as (model, cache):
        times: list[float] = []
        ids = torch.tensor([prompt])

        class Clock:
            def put(self, _: object) -> None:
                times.append(time.perf_counter())

            def end(self) -> None:
                pass

        with torch.inference_mode():
            model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                past_key_values=cache(len(prompt) - 1),
                generation_config=GenerationConfig(
                    max_new_tokens=steps, min_new_tokens=steps, do_sample=False, pad_token_id=0
                ),
                streamer=Clock(),  # type: ignore[arg-type]
            )
    return [after - before for before, after in pairwise(times[1:])]


@dataclass(slots=True)
class Tally:
    """Right answers of a variant, dense decoding's on the same questions, what layers and steps caught."""

    right: int = 0
    dense: int = 0
    caught: list[Caught] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Plan:
    """What to measure.

    Attributes:
        count: questions per task.
        steps: timed decode steps.
        long_output: decode steps of the long answer; 0: none.
        dense_up_to: haystacks of more tokens are read through a window.
        peer_seconds: time for each run of OpenVINO GenAI.
    """

    tasks: list[str]
    count: int
    steps: int
    long_output: int
    dense_up_to: int
    peer_seconds: float = 0.0


def read(session: Session, prefix: list[int], plan: Plan) -> None:
    """Bring a haystack into the cache."""
    if len(prefix) > plan.dense_up_to:
        session.fill(windowed(prefix))
    else:
        session.read(prefix)


def answers(
    session: Session, context: int, found: list[Variant], plan: Plan
) -> tuple[dict[Variant, Tally], list[int]]:
    """Every variant's tally over the questions of one context, and the last question's prompt."""
    tallies = {variant: Tally() for variant in found}
    prompt: list[int] = []
    for task in plan.tasks:
        prefix, tails = haystack(Coder(), task, context, 0, plan.count, seed=4)
        read(session, prefix, plan)
        for number, (ask, answer) in enumerate(tails):
            prompt = prefix + ask
            session.read(prompt, start=len(prefix))
            dense = session.decode(prompt, None, forced=answer).tokens == answer
            for variant, tally in tallies.items():
                if variant.method.sees_all and (context > SEES_ALL_CONTEXT or number >= SEES_ALL_QUESTIONS):
                    continue
                with watched(variant.method, enabled=number < RECALL_QUESTIONS) as caught:
                    tokens = session.decode(prompt, variant.method, forced=answer).tokens
                tally.right += tokens == answer
                tally.dense += dense
                tally.caught += caught
    return tallies, prompt


def greedy(session: Session, prompt: list[int], method: AnyMethod | None, steps: int) -> Steps:
    """Timed steps, after some to warm up, with no other method's sidecars."""
    with session.keeping(frozenset() if method is None else method.sidecars()):
        session.decode(prompt, method, steps=3)
        return session.decode(prompt, method, steps=steps)


def long_answers(
    session: Session, context: int, found: list[Variant], plan: Plan
) -> Iterator[tuple[Variant, Tally]]:
    """Tallies over one answer of thousands of tokens: a chat, decoded from the first question on."""
    prefix, tails = haystack(Coder(), "key_value", context, 1, plan.long_output // 12, seed=4)
    read(session, prefix, plan)
    first, *rest = tails
    prompt = prefix + first[0]
    session.read(prompt, start=len(prefix))
    stream, places = _chat(first, rest, plan.long_output)

    def right(method: AnyMethod | None) -> list[bool]:
        tokens = session.decode(prompt, method, forced=stream).tokens
        return [tokens[start:stop] == stream[start:stop] for start, stop in places]

    dense = right(None)
    for variant in found:
        if not variant.method.sees_all:
            both = [ours and theirs for ours, theirs in zip(right(variant.method), dense, strict=True)]
            yield variant, Tally(sum(both), sum(dense))


def _chat(first: Tail, rest: list[Tail], length: int) -> tuple[list[int], list[tuple[int, int]]]:
    """Tokens of a chat from the first answer on, and where in them the answers are."""
    user = Coder().user
    stream = list(first[1])
    places = [(0, len(stream))]
    for ask, answer in rest:
        if len(stream) >= length:
            break
        turn = ask if ask[0] == user else [user, *ask]
        places.append((len(stream) + len(turn), len(stream) + len(turn) + len(answer)))
        stream += [*turn, *answer]
    return stream, places
