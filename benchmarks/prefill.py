"""Prefill methods against our dense path, transformers and OpenVINO GenAI on the same prompts, in one run.

    python -m benchmarks.prefill [--quick] [--json FILE] [--context N]… [--method NAME[:SETTING=VALUE,…]]…

Ratios are speed-ups (above 1: the row is faster), medians over rounds in which all readers take their turn;
all cores, float32. `ttft`: from the prompt to its first token; `attention`: the time inside the attention of
all layers, with choosing and storing. Up to `--whole-up-to` tokens each reader reads whole haystacks and
answers `--count` questions behind each (a chunk of their own, inside the dense tail); `accuracy_vs_dense` is
its right answers over dense's. `sampled_ttft` is what the sampling below makes of the same chunks, over what
they took. Longer prompts: the readers read some chunks in turn (`timed_chunks`), over the KV of needle's
windowed pass; between those the cost per token is interpolated, for attention is linear in the position.
Both sides of each jump (end of the dense beginning, dense tail) are timed.

transformers reads the prompt in one causal SDPA forward, as `generate()` does; if longer than
`--whole-up-to`, it reads an eighth and a quarter, and a·n + b·n² through both stands for the whole.
`density`: pairs of a query and a key that are read, over all causal ones. `mass_recall`: attention mass of
what is read over all, mean over layers, heads and some rows of chunks that select. OpenVINO GenAI runs
needle's own weights, in a process of its own.

`--model llama-1b` times a model of that shape with random weights over random KV; it has no answers.

With `GOMP_SPINCOUNT=5000` in the environment OpenMP's threads wait as in the engine's own process.
"""

import json
import statistics
import tempfile
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.table import Table

from benchmarks import openvino_runs
from benchmarks.decode_session import PAGE_SIZE
from benchmarks.prefill_cases import (
    Document,
    Plan,
    Reader,
    Tally,
    documents,
    fill,
    read_samples,
    read_whole,
    reader,
    selecting,
)
from benchmarks.prefill_session import PrefillSession
from benchmarks.serving import machine
from benchmarks.workloads import model_folder
from headway.engine.config import ModelConfig
from headway.engine.loading import load
from headway.engine.sidecars import Sidecar

ROOM = 4096
"""Tokens kept free behind a document for questions."""
QUICK_METHODS = ("headway", "streaming")
OPENVINO_MODES = ("dense", "trishape", "xattention-0.9", "xattention-0.99")


def measure(
    session: PrefillSession, context: int, methods: list[Reader], plan: Plan, peer_seconds: float
) -> Iterator[dict[str, Any]]:
    """Rows of one context."""
    found = documents(context, plan)
    readers = [Reader("dense"), *(Reader(item.name, item.method) for item in methods)]
    whole = bool(found) and context <= plan.whole_up_to
    if whole:
        plain = read_whole(session, found, readers, plan)
    else:
        plain = read_samples(session, fill(session, context, found), readers, plan)
        found = [(task, prefix, tails[:1]) for task, prefix, tails in found[-1:]]
    readers.append(Reader("transformers", seconds=plain))
    if peer_seconds and found:
        readers += (openvino(mode, found, peer_seconds, answers=whole) for mode in OPENVINO_MODES)
    for item in readers:
        if item.seconds:
            yield row(item, context, readers[0], plain)


def openvino(mode: str, found: list[Document], limit: float, answers: bool) -> Reader:
    """What OpenVINO GenAI makes of the same haystacks within `limit` seconds."""
    item = Reader(f"openvino {mode}")
    lines = openvino_runs.run(mode, [(prefix, tails) for _, prefix, tails in found], limit)
    for (task, _, _), line in zip(found, lines, strict=False):
        item.seconds.append(line["seconds"])
        if answers and len(lines) == len(found):
            tally = item.tallies.setdefault(task, Tally())
            tally.right += line["right"]
            tally.asked += line["asked"]
    return item


def row(item: Reader, context: int, dense: Reader, plain: list[float]) -> dict[str, Any]:
    """One line of the table, and what stands behind it."""
    tasks = {
        task: {"right": tally.right, "dense": dense.tallies[task].right, "asked": tally.asked}
        for task, tally in item.tallies.items()
    }
    right, of = (sum(task[side] for task in tasks.values()) for side in ("right", "dense"))
    return {
        "method": item.name,
        "context": context,
        "ttft_ratio_vs_dense": faster(dense.seconds, item.seconds),
        "ttft_ratio_vs_transformers": faster(plain, item.seconds),
        "attention_ratio_vs_dense": faster(dense.attention, item.attention),
        "density": mean(item.density, 4),
        "mass_recall": mean(item.recalls, 3),
        "accuracy_vs_dense": round(right / of, 3) if of else None,
        "right": f"{right} : {of}" if tasks else None,
        "ttft_s": round(min(item.seconds), 3),
        "sampled_ttft": faster(item.by_sample, item.seconds),
        "timed_chunks": item.timed_chunks,
        "tasks": tasks,
        "settings": item.method.settings.model_dump() if item.method else {},
    }


def faster(theirs: list[float], ours: list[float]) -> float | None:
    """Median over rounds of their seconds over ours."""
    ratios = [a / b for a, b in zip(theirs, ours, strict=False)]
    return round(statistics.median(ratios), 2) if ratios else None


def mean(numbers: list[float], digits: int) -> float | None:
    """None of nothing."""
    return round(statistics.mean(numbers), digits) if numbers else None


def main(
    quick: Annotated[
        bool, typer.Option(help="8k whole, 32k sampled, few methods; ends within 50 s on two cores.")
    ] = False,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write rows and machine here.")] = None,
    context: Annotated[list[int] | None, typer.Option(help="Tokens of a haystack.")] = None,
    method: Annotated[
        list[str] | None, typer.Option(help="Only these: NAME, or NAME:tau=0.9,tile=64 with settings.")
    ] = None,
    task: Annotated[list[str] | None, typer.Option(help="Needle's tasks.")] = None,
    count: Annotated[int, typer.Option(help="Questions per haystack.")] = 200,
    haystacks: Annotated[int, typer.Option(min=1, help="Haystacks per task.")] = 1,
    model: Annotated[str, typer.Option(help="needle, llama-0.2b or llama-1b.")] = "needle",
    whole_up_to: Annotated[int, typer.Option(help="Longer prompts are timed by some chunks.")] = 32_768,
    sampled: Annotated[int, typer.Option(min=2, help="How many of them.")] = 8,
    rounds: Annotated[int, typer.Option(min=1, help="How often those are timed.")] = 3,
    peer_seconds: Annotated[
        float, typer.Option(min=0, help="Time for each mode of OpenVINO GenAI and context; 0: without it.")
    ] = 900.0,
) -> None:
    """Measure and print the table."""
    contexts = context or ([8192, 32_768] if quick else [8192, 32_768, 131_072])
    names = method or selecting()
    plan = Plan(
        task or ["some_keys", "many_keys", "key_value"], count, haystacks, whole_up_to, sampled, rounds
    )
    if quick:
        names = method or list(QUICK_METHODS)
        plan, peer_seconds = Plan(["key_value"], 6, 1, 8192, 2, 1), 0.0
    if model != "needle":
        plan, peer_seconds = Plan([], 0, 0, 0, sampled, rounds), 0.0
    peer_seconds = openvino_runs.affordable(peer_seconds)
    with tempfile.TemporaryDirectory() as scratch:
        loaded = load(ModelConfig(name=str(model_folder(model, Path(scratch))), dtype="float32"))
    methods = [item for name in names if (item := reader(name, loaded, PAGE_SIZE))]
    kept: frozenset[Sidecar] = frozenset().union(*(item.method.sidecars() for item in methods if item.method))
    session = PrefillSession(loaded, max(contexts) + ROOM, kept)
    session.read(torch.randint(loaded.vocab_size, (min(512, *contexts),)).tolist())  # to warm up
    rows = [item for length in contexts for item in measure(session, length, methods, plan, peer_seconds)]
    session.close()
    shown = [name for name in rows[0] if name not in ("timed_chunks", "tasks", "settings")]
    table = Table(*(name.replace("_ratio_vs_", " × ") for name in shown))
    for line in rows:
        table.add_row(*("" if line[name] is None else str(line[name]) for name in shown))
    Console(width=180).print(table)
    if json_file:
        facts = machine() | ({"openvino-genai": version("openvino-genai")} if peer_seconds else {})
        json_file.write_text(json.dumps({"machine": facts, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    typer.run(main)
