"""Decode methods against our dense path and transformers' `generate()`, on the same KV, in one run.

    python -m benchmarks.decode [--quick] [--json FILE] [--context N]… [--budget N]… [--method NAME]…

On needle: a haystack of facts is read once per context and task, then every
method answers the same questions over it, along the right answer, and its tokens are compared with dense
decoding's. Times are medians over greedy decode steps after one question, all cores, float32. Ratios are
speed-ups (above 1: the method is faster); `attention` is the time inside the attention of all layers, with
choosing and storing. `mass_recall`: attention mass of what was read over that of the exact top-k of the same
size, where anything is selected.
"""

import json
import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.table import Table
from transformers import GenerationConfig

from benchmarks.decode_session import Session, Steps
from benchmarks.recall import mass_recall, watched
from benchmarks.serving import machine
from benchmarks.windowed import windowed
from headway.engine.config import ModelConfig
from headway.engine.errors import ConfigError
from headway.engine.loaded import LoadedModel
from headway.engine.loading import load
from headway.engine.methods import decode
from headway.engine.methods.decode import AnyMethod
from headway.engine.needle.coding import Coder
from headway.engine.needle.evaluate import haystack
from headway.engine.selection.settings import BudgetSettings
from headway.engine.sidecars import Sidecar

ROOM = 1024
"""Tokens kept free behind a haystack for a question and its answer."""
RECALL_QUESTIONS = 8
"""Questions per task at which the recall is looked at: that takes longer than the answer."""
SEES_ALL_CONTEXT, SEES_ALL_QUESTIONS = 8192, 4
"""Limits for methods that must prefill the whole prompt themselves."""


@dataclass(frozen=True, slots=True)
class Variant:
    """One method with one budget."""

    name: str
    budget: int
    method: AnyMethod


def variants(loaded: LoadedModel, budgets: list[int], names: list[str]) -> list[Variant]:
    """The named methods with every budget; what has none gets it as its window."""
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
            method = kind(schema.model_validate(settings))
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
    """Right answers of a variant, dense decoding's on the same questions, and recalls of layers and steps."""

    right: int = 0
    dense: int = 0
    recalls: list[float] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Plan:
    """What to measure: questions per task, timed steps, and up to which length haystacks are read densely."""

    tasks: list[str]
    count: int
    steps: int
    dense_up_to: int


def answers(
    session: Session, context: int, found: list[Variant], plan: Plan
) -> tuple[dict[Variant, Tally], list[int]]:
    """Every variant's tally over the questions of one context, and the last question's prompt."""
    tallies = {variant: Tally() for variant in found}
    prompt: list[int] = []
    for task in plan.tasks:
        prefix, tails = haystack(Coder(), task, context, 0, plan.count, seed=4)
        if context > plan.dense_up_to:
            session.fill(windowed(prefix))
        else:
            session.read(prefix)
        for number, (ask, answer) in enumerate(tails):
            prompt = prefix + ask
            session.read(prompt, start=len(prefix))
            dense = session.decode(prompt, None, forced=answer).tokens == answer
            for variant, tally in tallies.items():
                if variant.method.sees_all and (context > SEES_ALL_CONTEXT or number >= SEES_ALL_QUESTIONS):
                    continue
                with watched(enabled=number < RECALL_QUESTIONS) as caught:
                    tokens = session.decode(prompt, variant.method, forced=answer).tokens
                tally.right += tokens == answer
                tally.dense += dense
                tally.recalls += caught
    return tallies, prompt


def measure(session: Session, context: int, found: list[Variant], plan: Plan) -> Iterator[dict[str, Any]]:
    """Rows of one context."""
    tallies, prompt = answers(session, context, found, plan)
    plain = statistics.median(generate_seconds(session, prompt, plan.steps))
    dense = greedy(session, prompt, None, plan.steps)
    yield row("dense", 0, context, dense, dense, plain, Tally(1, 1))
    for variant, tally in tallies.items():
        if tally.dense:
            timed = greedy(session, prompt, variant.method, plan.steps)
            yield row(variant.name, variant.budget, context, timed, dense, plain, tally)


def greedy(session: Session, prompt: list[int], method: AnyMethod | None, steps: int) -> Steps:
    """Timed steps, after some to warm up."""
    session.decode(prompt, method, steps=3)
    return session.decode(prompt, method, steps=steps)


def row(
    name: str, budget: int, context: int, timed: Steps, dense: Steps, plain: float, tally: Tally
) -> dict[str, Any]:
    """One line of the table."""
    step, attention = statistics.median(timed.seconds), statistics.median(timed.attention)
    return {
        "method": name,
        "context": context,
        "budget": budget,
        "step_ratio_vs_dense": round(statistics.median(dense.seconds) / step, 2),
        "step_ratio_vs_generate": round(plain / step, 2),
        "attention_ratio_vs_dense": round(statistics.median(dense.attention) / attention, 2),
        "kv_read_share": round(timed.usage.kv_read_share if timed.usage else 1.0, 4),
        "mass_recall": round(mass_recall(tally.recalls), 3),
        "accuracy_vs_dense": round(tally.right / tally.dense, 3),
        "right": f"{tally.right} : {tally.dense}",
        "step_ms": round(1000 * step, 2),
    }


def main(
    quick: Annotated[
        bool, typer.Option(help="Few questions, 8k and 32k; ends within 50 s on two cores.")
    ] = False,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write rows and machine here.")] = None,
    context: Annotated[list[int] | None, typer.Option(help="Tokens of a haystack.")] = None,
    budget: Annotated[list[int] | None, typer.Option(help="Tokens read per KV head and step.")] = None,
    method: Annotated[list[str] | None, typer.Option(help="Only these methods.")] = None,
    task: Annotated[list[str] | None, typer.Option(help="Needle's tasks.")] = None,
    count: Annotated[int, typer.Option(help="Questions per task.")] = 200,
    steps: Annotated[int, typer.Option(help="Timed decode steps.")] = 48,
    dense_up_to: Annotated[
        int, typer.Option(help="Longer haystacks are read through a window, as in needle's training.")
    ] = 32_768,
) -> None:
    """Measure and print the table."""
    contexts = context or ([8192, 32_768] if quick else [8192, 32_768, 131_072])
    budgets = budget or ([512] if quick else [512, 2048])
    names = method or [name for name in decode.names() if name != "dense"]
    plan = Plan(task or ["many_keys", "key_value"], count, steps, dense_up_to)
    if quick:
        plan = Plan(["key_value"], 6, 16, dense_up_to=0)
    loaded = load(ModelConfig(name="needle", dtype="float32"))
    found = [v for v in variants(loaded, budgets, names) if not (quick and v.method.sees_all)]
    sidecars: frozenset[Sidecar] = frozenset().union(*(variant.method.sidecars() for variant in found))
    session = Session(loaded, max(contexts) + ROOM, sidecars)
    rows = [item for length in contexts for item in measure(session, length, found, plan)]
    session.close()
    table = Table(*rows[0])
    for item in rows:
        table.add_row(*(str(value) for value in item.values()))
    Console(width=160).print(table)
    if json_file:
        json_file.write_text(json.dumps({"machine": machine(), "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    typer.run(main)
