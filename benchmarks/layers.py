"""Layers routed by request on needle, through the whole engine, in one run.

    python -m benchmarks.layers [--router PROFILE] [--context N]… [--task T]… [--count N] [--json FILE]

Each question about a haystack is a request of its own; an answer is right if it is the true one, token by
token. A haystack's first request reads it: `prefill_ratio_vs_dense` compares what that takes this process in
processor time, previews included; above 1 is less.
"""

import json
import time
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean, median
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from benchmarks.prefill_cases import Document, Plan, Tally, documents
from benchmarks.serving import machine
from headway.engine.build import build
from headway.engine.config import EngineConfig
from headway.engine.config_section import parse
from headway.engine.core import Engine
from headway.engine.errors import RequestFailed
from headway.engine.messages import SamplingParams, Submit, Tokens

LAYERS = 6
"""Of needle."""
ROOM = 4096
"""Tokens kept free behind a document for questions."""


@dataclass(slots=True)
class Outcome:
    """What one way to serve gave at one context.

    Attributes:
        sparse: share of the layers that were sparse, by question.
        seconds: processor time of the first question of each haystack, up to its first token.
    """

    tally: Tally = field(default_factory=Tally)
    sparse: list[float] = field(default_factory=list)
    density: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)


def engine_of(longest: int, layers: dict[str, Any] | None) -> Engine:
    """Of needle; it reads the first 2048 tokens of a prompt whole."""
    recipe = {
        "prefill": {"method": "dense", "dense_below": 2048},
        "decode": {"method": "dense", "dense_below": 0},
        "layers": layers,
    }
    sections = {"model": {"name": "needle", "max_context": longest}, "recipe": recipe}
    return build(parse(EngineConfig, sections))


def ask(engine: Engine, prompt: list[int], right: list[int]) -> tuple[list[int], Tokens, float]:
    """Answer greedily: the tokens, the last event, and the processor time up to the first token."""
    params = SamplingParams(temperature=0.0, max_tokens=len(right))
    began, first, found = time.process_time(), 0.0, []
    engine.submit(Submit(request_id="question", prompt=prompt, sampling=params))
    while True:
        for event in engine.step():
            if not isinstance(event, Tokens):
                raise RequestFailed("a question was not answered")
            first = first or time.process_time() - began
            found += event.token_ids
            if event.finish_reason is not None:
                return found, event, first


def answer(engine: Engine, found: list[Document]) -> Outcome:
    """All questions about all haystacks."""
    outcome = Outcome()
    for _, prefix, tails in found:
        for number, (question, right) in enumerate(tails):
            tokens, last, seconds = ask(engine, prefix + question, right)
            outcome.tally.add([tokens == right])
            outcome.sparse.append(0.0 if last.full_layers is None else 1 - len(last.full_layers) / LAYERS)
            if number == 0:
                outcome.seconds.append(seconds)
                outcome.density.append(1.0 if last.prefill is None else last.prefill.density)
    return outcome


def row(name: str, context: int, outcome: Outcome, dense: Outcome) -> dict[str, Any]:
    """One line of the table."""
    return {
        "layers": name,
        "context": context,
        "right": f"{outcome.tally.right} of {outcome.tally.asked}",
        "sparse_share": round(fmean(outcome.sparse), 3),
        "prefill_density": round(fmean(outcome.density), 3),
        "prefill_ratio_vs_dense": round(median(dense.seconds) / median(outcome.seconds), 2),
    }


def main(
    router: Annotated[Path, typer.Option(help="A `router` profile.")] = Path(
        "configs/profiles/needle/router"
    ),
    context: Annotated[list[int] | None, typer.Option(help="Tokens of a haystack.")] = None,
    task: Annotated[list[str] | None, typer.Option(help="Needle's tasks.")] = None,
    count: Annotated[int, typer.Option(help="Questions per task.")] = 12,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write rows and machine here.")] = None,
) -> None:
    """Measure and print the table."""
    contexts = context or [4096, 8192]
    plan = Plan(task or ["some_keys", "many_keys", "key_value"], count, 1, 0, 0, 0)
    found = {length: documents(length, plan) for length in contexts}
    outcomes = {}
    for name, layers in (("all full", None), ("routed", {"router": str(router)})):
        engine = engine_of(max(contexts) + ROOM, layers)
        for length in contexts:
            outcomes[name, length] = answer(engine, found[length])
        engine.close()
    rows = [
        row(name, length, outcome, outcomes["all full", length])
        for (name, length), outcome in outcomes.items()
    ]
    table = Table(*(name.replace("_ratio_vs_", " × ") for name in rows[0]))
    for line in rows:
        table.add_row(*map(str, line.values()))
    Console(width=120).print(table)
    if json_file:
        json_file.write_text(json.dumps({"machine": machine(), "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    typer.run(main)
