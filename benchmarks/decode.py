"""Decode methods against our dense path and transformers' `generate()`, on the same KV, in one run.

    python -m benchmarks.decode [--quick] [--json FILE] [--context N]… [--budget N]… [--method NAME]…

On needle: a haystack of facts is read once per context and task (densely, as a server would), then every
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
from dataclasses import dataclass
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


@dataclass(frozen=True, slots=True)
class Variant:
    """One method with one budget."""

    name: str
    budget: int
    method: AnyMethod


def variants(loaded: LoadedModel, budgets: list[int], wanted: list[str]) -> list[Variant]:
    """Every registered method but dense with every budget; what has no budget comes once, windowed by it."""
    found = []
    for name in wanted or [name for name in decode.names() if name != "dense"]:
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


def questions(
    coder: Coder, task: str, context: int, count: int
) -> tuple[list[int], list[tuple[list[int], list[int]]]]:
    """A haystack of about `context` tokens and (question, answer) pairs about it."""
    return haystack(coder, task, context, 0, count, seed=4)


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


def measure(
    session: Session,
    tasks: list[str],
    context: int,
    found: list[Variant],
    count: int,
    steps: int,
    console: Console,
) -> Iterator[dict[str, Any]]:
    """Rows of one context."""
    coder = Coder()
    right: dict[tuple[str, int], list[int]] = {}
    recalls: dict[tuple[str, int], list[float]] = {}
    prompt: list[int] = []
    for task in tasks:
        prefix, tails = questions(coder, task, context, count)
        with console.status(f"reading {task}, {context} tokens"):
            seconds = session.read(prefix)
        console.print(f"{task}: {len(prefix)} tokens read in {seconds:.1f} s")
        for number, (ask, answer) in enumerate(tails):
            prompt = prefix + ask
            session.read(prompt, start=len(prefix))
            dense = session.decode(prompt, None, forced=answer)
            for variant in found:
                if variant.method.sees_all and context > 8192:
                    continue
                with watched(enabled=number < 8) as caught:
                    steps_taken = session.decode(prompt, variant.method, forced=answer)
                key = (variant.name, variant.budget)
                score = right.setdefault(key, [0, 0])
                score[0] += steps_taken.tokens == answer
                score[1] += dense.tokens == answer
                recalls.setdefault(key, []).extend(caught)
    plain = generate_seconds(session, prompt, steps) if steps else [0.0]
    dense = best(session, prompt, None, steps)
    yield row("dense", context, 0, dense, dense, plain, 1.0, [1, 1])
    for variant in found:
        key = (variant.name, variant.budget)
        if key in right:
            timed = best(session, prompt, variant.method, steps)
            yield row(
                variant.name,
                context,
                variant.budget,
                timed,
                dense,
                plain,
                mass_recall(recalls[key]),
                right[key],
            )


def best(session: Session, prompt: list[int], method: AnyMethod | None, steps: int) -> Steps:
    """Greedy steps, the first run to warm up."""
    session.decode(prompt, method, steps=3)
    return session.decode(prompt, method, steps=steps)


def row(
    name: str,
    context: int,
    budget: int,
    timed: Steps,
    dense: Steps,
    plain: list[float],
    recall: float,
    right: list[int],
) -> dict[str, Any]:
    """One line of the table."""
    step = statistics.median(timed.seconds)
    return {
        "method": name,
        "context": context,
        "budget": budget,
        "step_ratio_vs_dense": round(statistics.median(dense.seconds) / step, 2),
        "step_ratio_vs_generate": round(statistics.median(plain) / step, 2),
        "attention_ratio_vs_dense": round(
            statistics.median(dense.attention) / statistics.median(timed.attention), 2
        ),
        "kv_read_share": round(timed.usage.kv_read_share if timed.usage else 1.0, 4),
        "mass_recall": round(recall, 3),
        "accuracy_vs_dense": round(right[0] / right[1], 3) if right[1] else None,
        "answers": right,
        "step_ms": round(1000 * step, 2),
    }


def main(
    quick: Annotated[bool, typer.Option(help="8k only, few questions; ends within 50 s.")] = False,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write rows and machine here.")] = None,
    context: Annotated[list[int] | None, typer.Option(help="Tokens of a haystack.")] = None,
    budget: Annotated[list[int] | None, typer.Option(help="Tokens read per KV head and step.")] = None,
    method: Annotated[list[str] | None, typer.Option(help="Only these methods.")] = None,
    task: Annotated[list[str] | None, typer.Option(help="Needle's tasks.")] = None,
    count: Annotated[int, typer.Option(help="Questions per task.")] = 200,
    steps: Annotated[int, typer.Option(help="Timed decode steps.")] = 48,
) -> None:
    """Measure and print the table."""
    contexts = context or ([8192] if quick else [8192, 32_768, 131_072])
    budgets = budget or ([512] if quick else [512, 2048])
    tasks = task or (["key_value"] if quick else ["many_keys", "key_value"])
    count, steps = (8, 16) if quick else (count, steps)
    console = Console(width=160)
    loaded = load(ModelConfig(name="needle", dtype="float32"))
    found = variants(loaded, budgets, method or [])
    sidecars: frozenset[Sidecar] = frozenset().union(*(variant.method.sidecars() for variant in found))
    session = Session(loaded, max(contexts) + ROOM, sidecars)
    rows = [r for length in contexts for r in measure(session, tasks, length, found, count, steps, console)]
    session.close()
    table = Table(*rows[0])
    for item in rows:
        table.add_row(*(str(value) for value in item.values()))
    console.print(table)
    if json_file:
        json_file.write_text(json.dumps({"machine": machine(), "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    typer.run(main)
