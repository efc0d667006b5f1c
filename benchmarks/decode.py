"""Decode methods against our dense path and transformers' `generate()`, on the same KV, in one run.

    python -m benchmarks.decode [--quick] [--json FILE] [--context N]… [--budget N]… [--method NAME]…
                                [--settings YAML]

On needle, a haystack of facts is read once per context and task; then every method answers the same questions
over it, along the right answer, and its tokens are compared with dense decoding's. `long output` rows answer
question after question in one answer of 2,000 tokens. Times are means over greedy decode steps after one
question, all cores, float32. Ratios are speed-ups (above 1: the method is faster); `attention` is the time
inside the attention of all layers, with choosing and storing. `refreshes`: lists made anew in a step, over
all layers. `mass_recall`: attention mass of what was read over that of the exact top-k of the same size,
where anything is selected. `false_local`: KV heads that adaptive took for local though less than its
threshold of their attention was near, of all it took for local. With `--peer-seconds`, OpenVINO GenAI decodes
behind the same prompt, with needle's own weights, in a process of its own: densely and with cache eviction.

`--model llama-1b` times a model of that shape with random weights over random KV; its answers mean nothing.
"""

import json
import statistics
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml
from rich.console import Console
from rich.table import Table

from benchmarks import openvino_runs
from benchmarks.decode_cases import (
    SEES_ALL_CONTEXT,
    Plan,
    Tally,
    Variant,
    answers,
    generate_seconds,
    greedy,
    long_answers,
    variants,
)
from benchmarks.decode_session import Session, Steps
from benchmarks.recall import false_local, mass_recall
from benchmarks.serving import machine
from benchmarks.workloads import model_folder
from headway.engine.config import ModelConfig
from headway.engine.loading import load
from headway.engine.methods import decode
from headway.engine.sidecars import Sidecar

ROOM = 4096
"""Tokens kept free behind a document for questions and answers."""


def measure(session: Session, context: int, found: list[Variant], plan: Plan) -> Iterator[dict[str, Any]]:
    """Rows of one context; without tasks, over random KV."""
    if plan.tasks:
        tallies, prompt = answers(session, context, found, plan)
    else:
        tallies, prompt = {variant: Tally() for variant in found}, [7] * context
        session.fill_randomly(context)
    plain = statistics.fmean(generate_seconds(session, prompt, plan.steps))
    dense = greedy(session, prompt, None, plan.steps)
    yield row("dense", 0, context, dense, dense, plain, Tally(1, 1))
    for peer in openvino_runs.decode_rows(context, prompt, plan.steps, dense.step_seconds, plan.peer_seconds):
        yield peer | {"budget": 0}
    for variant, tally in tallies.items():
        if not (variant.method.sees_all and context > SEES_ALL_CONTEXT):
            timed = greedy(session, prompt, variant.method, plan.steps)
            yield row(variant.name, variant.budget, context, timed, dense, plain, tally)
    if plan.long_output and context <= plan.dense_up_to:
        for variant, tally in long_answers(session, context, found, plan):
            yield {
                "method": f"{variant.name}, long output",
                "context": context,
                "budget": variant.budget,
                "accuracy_vs_dense": round(tally.right / tally.dense, 3) if tally.dense else None,
                "right": f"{tally.right} : {tally.dense}",
            }


def row(
    name: str, budget: int, context: int, timed: Steps, dense: Steps, plain: float, tally: Tally
) -> dict[str, Any]:
    """One line of the table."""
    return {
        "method": name,
        "context": context,
        "budget": budget,
        "step_ratio_vs_dense": round(dense.step_seconds / timed.step_seconds, 2),
        "step_ratio_vs_generate": round(plain / timed.step_seconds, 2),
        "attention_ratio_vs_dense": round(dense.attention_seconds / timed.attention_seconds, 2),
        "kv_read_share": round(timed.usage.kv_read_share if timed.usage else 1.0, 4),
        "refreshes": refreshes(timed),
        "mass_recall": round(mass_recall(tally.caught), 3) if tally.caught else None,
        "false_local": false_local(tally.caught),
        "accuracy_vs_dense": round(tally.right / tally.dense, 3) if tally.dense else None,
        "right": f"{tally.right} : {tally.dense}",
        "step_ms": round(1000 * timed.step_seconds, 2),
    }


def refreshes(timed: Steps) -> float | None:
    """Lists made anew in a step, over all layers; None: the method keeps none."""
    usage = timed.usage
    return round(usage.refreshes / usage.steps, 2) if usage and usage.refreshes else None


def main(
    quick: Annotated[
        bool, typer.Option(help="Few questions, 8k and 32k; ends within 50 s on two cores.")
    ] = False,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write rows and machine here.")] = None,
    context: Annotated[list[int] | None, typer.Option(help="Tokens of a haystack.")] = None,
    budget: Annotated[list[int] | None, typer.Option(help="Tokens read per KV head and step.")] = None,
    method: Annotated[list[str] | None, typer.Option(help="Only these methods.")] = None,
    settings: Annotated[str, typer.Option(help="More settings of all methods, as a YAML mapping.")] = "{}",
    task: Annotated[list[str] | None, typer.Option(help="Needle's tasks.")] = None,
    count: Annotated[int, typer.Option(help="Questions per task.")] = 200,
    steps: Annotated[int, typer.Option(help="Timed decode steps.")] = 48,
    model: Annotated[str, typer.Option(help="needle, llama-0.2b or llama-1b.")] = "needle",
    long_output: Annotated[int, typer.Option(help="Decode steps of the long answer; 0: none.")] = 0,
    dense_up_to: Annotated[
        int, typer.Option(help="Longer haystacks are read through a window, as in needle's training.")
    ] = 32_768,
    peer_seconds: Annotated[
        float, typer.Option(min=0, help="Time for each run of OpenVINO GenAI; 0: without it.")
    ] = 0.0,
) -> None:
    """Measure and print the table."""
    peer_seconds = openvino_runs.affordable(peer_seconds)
    contexts = context or ([8192, 32_768] if quick else [8192, 32_768, 131_072])
    budgets = budget or ([512] if quick else [512, 2048])
    names = method or [name for name in decode.names() if name != "dense"]
    plan = Plan(
        task or ["some_keys", "many_keys", "key_value"], count, steps, long_output, dense_up_to, peer_seconds
    )
    if quick:
        plan = Plan(["key_value"], 6, 16, 0, 0)
    if model != "needle":
        plan = Plan([], 0, steps, 0, 0)
    with tempfile.TemporaryDirectory() as scratch:
        loaded = load(ModelConfig(name=str(model_folder(model, Path(scratch))), dtype="float32"))
    others = yaml.safe_load(settings)
    found = [v for v in variants(loaded, budgets, names, others) if not (quick and v.method.sees_all)]
    sidecars: frozenset[Sidecar] = frozenset().union(*(variant.method.sidecars() for variant in found))
    session = Session(loaded, max(contexts) + ROOM, sidecars)
    rows = [item for length in contexts for item in measure(session, length, found, plan)]
    session.close()
    table = Table(*rows[0])
    for item in rows:
        table.add_row(*(str(item.get(column, "")) for column in rows[0]))
    Console(width=160).print(table)
    if json_file:
        json_file.write_text(json.dumps({"machine": machine(), "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    typer.run(main)
