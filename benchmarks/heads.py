"""Routing by heads and layers on needle, alone and together with our own methods, in one run.

    python -m benchmarks.heads [--quick] [--json FILE] [--context N]… [--profile KIND]…
        [--sparsity S]… [--question near|all] [--budget N] [--task T]… [--count N]

Each row is a way to serve: a share of the KV heads, by a profile in configs/profiles/needle, reads sinks and
window only, the others everything or what `headway` chooses, in prefill and in decode. Answers are decoded
step by step behind haystacks that were read in the same way or, beyond `--whole-up-to` tokens, that needle's
windowed pass has read for all. Times as in `benchmarks.prefill` (some chunks of
one prompt) and `benchmarks.decode` (greedy steps behind it), ratios to our dense path: above 1 is faster.
With `--peer-seconds`, OpenVINO GenAI decodes behind the same prompt.
`kv_read_share` is what decode steps read of all KV; `kv_bytes_ratio` is all KV over what a request holds with
`memory: {streaming_heads: drop}`, which changes neither answers nor what is read.
"""

import json
import statistics
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from benchmarks import openvino_runs
from benchmarks.decode_cases import generate_seconds, greedy
from benchmarks.decode_session import CHUNK, PAGE_SIZE
from benchmarks.held import kv_bytes_ratio
from benchmarks.prefill_cases import Document, Plan, Reader, Tally, documents, fill, read_samples
from benchmarks.prefill_session import PrefillSession
from benchmarks.serving import machine
from benchmarks.windowed import windowed
from headway.engine.config import ModelConfig
from headway.engine.loaded import LoadedModel
from headway.engine.loading import load
from headway.engine.methods import decode, prefill
from headway.engine.methods.kind import DECODE, PREFILL
from headway.engine.methods.routed import RoutedDecode, RoutedPrefill
from headway.engine.profile.routing import head_routes
from headway.engine.recipe import HeadsConfig
from headway.engine.selection.head_route import HeadRoutes

PROFILES = Path("configs/profiles/needle")
ROOM = 4096
"""Tokens kept free behind a document for questions."""


@dataclass(frozen=True, slots=True)
class Serving:
    """A way to serve, and how often it was right."""

    name: str
    prefill: prefill.AnyMethod | None
    decode: decode.AnyMethod | None
    routes: HeadRoutes | None = None
    tallies: dict[str, Tally] = field(default_factory=dict)


def serving(
    loaded: LoadedModel,
    methods: str,
    profile: str = "",
    sparsity: float = 0.0,
    *,
    question: str = "near",
    budget: int = 512,
) -> Serving:
    """`methods`, dense or headway, for the heads that a profile does not let stream."""
    name = methods if not profile else f"{profile} {sparsity:g}, {methods}"
    if methods == "dense" and not profile:
        return Serving(name, None, None)
    reads = PREFILL.make(PREFILL.parse({"method": methods, "dense_below": 2048}))
    steps = {"method": methods, "dense_below": 0} | ({"budget": budget} if methods == "headway" else {})
    decodes = DECODE.make(DECODE.parse(steps))
    routes = None
    if profile:
        section = {"profile": str(PROFILES / profile), "sparsity": sparsity, "question": question}
        routes = head_routes(HeadsConfig.model_validate(section), loaded)
        if routes is not None:
            reads, decodes = RoutedPrefill(reads, routes), RoutedDecode(decodes, routes)
    for method in (reads, decodes):
        method.check(loaded.specs, PAGE_SIZE)
    return Serving(name, reads, decodes, routes)


def answer(session: PrefillSession, found: list[Document], servings: list[Serving], whole: bool) -> None:
    """Every way reads every haystack, if `whole`, else takes over its KV, and answers questions behind it."""
    for task, prefix, tails in found:
        if not whole:
            session.fill(windowed(prefix))
        for one in servings:
            kept = one.decode.sidecars() if one.decode else frozenset()
            sequence = session.prompt(prefix + tails[0][0], one.prefill)
            for chunk in session.chunks(sequence) if whole else ():
                session.read_chunk(sequence, *chunk, also=kept)
            for ask, right in tails:
                prompt = prefix + ask
                session.read_chunk(session.prompt(prompt, one.prefill), len(prefix), len(ask), also=kept)
                tally = one.tallies.setdefault(task, Tally())
                steps = session.decode(prompt, one.decode, forced=right, prefill=one.prefill)
                tally.add([steps.tokens == right])


def measure(
    session: PrefillSession,
    context: int,
    servings: list[Serving],
    plan: Plan,
    steps: int,
    peer_seconds: float,
) -> Iterator[dict[str, Any]]:
    """Rows of one context."""
    found = documents(context, plan)
    answer(session, found, servings, whole=context <= plan.whole_up_to)
    prompt = fill(session, context, found)
    readers = [Reader(one.name, one.prefill) for one in servings]
    read_samples(session, prompt, readers, plan)
    plain = statistics.fmean(generate_seconds(session, prompt, steps))
    timed = [greedy(session, prompt, one.decode, steps) for one in servings]
    for one, reader, taken in zip(servings, readers, timed, strict=True):
        right, of = (sum(tally.right for tally in each.tallies.values()) for each in (one, servings[0]))
        yield {
            "method": one.name,
            "context": context,
            "ttft_ratio_vs_dense": ratio(readers[0].seconds, reader.seconds),
            "prefill_attention_ratio_vs_dense": ratio(readers[0].attention, reader.attention),
            "step_ratio_vs_dense": round(timed[0].step_seconds / taken.step_seconds, 2),
            "step_ratio_vs_generate": round(plain / taken.step_seconds, 2),
            "decode_attention_ratio_vs_dense": round(timed[0].attention_seconds / taken.attention_seconds, 2),
            "kv_read_share": round(taken.usage.kv_read_share if taken.usage else 1.0, 3),
            "kv_bytes_ratio": round(
                kv_bytes_ratio(
                    session.loaded, one.routes, (one.prefill, one.decode), context, PAGE_SIZE, CHUNK
                ),
                2,
            ),
            "accuracy_vs_dense": round(right / of, 3) if of else None,
            "right": ", ".join(
                f"{task} {tally.right} of {tally.asked}" for task, tally in one.tallies.items()
            ),
            "step_ms": round(1000 * taken.step_seconds, 2),
        }
    yield from openvino_runs.decode_rows(context, prompt, steps, timed[0].step_seconds, peer_seconds)


def ratio(theirs: list[float], ours: list[float]) -> float:
    """Their median over ours."""
    return round(statistics.median(theirs) / statistics.median(ours), 2)


def main(
    quick: Annotated[bool, typer.Option(help="One profile at 8k; ends within 50 s on two cores.")] = False,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write rows and machine here.")] = None,
    context: Annotated[list[int] | None, typer.Option(help="Tokens of a haystack.")] = None,
    profile: Annotated[list[str] | None, typer.Option(help="Only these of `headway profile`.")] = None,
    sparsity: Annotated[
        list[float] | None,
        typer.Option(help="Shares of KV heads that stream; the largest with headway, too."),
    ] = None,
    task: Annotated[list[str] | None, typer.Option(help="Needle's tasks.")] = None,
    count: Annotated[int, typer.Option(help="Questions per haystack.")] = 200,
    haystacks: Annotated[int, typer.Option(min=1, help="Haystacks per task.")] = 1,
    steps: Annotated[int, typer.Option(help="Timed decode steps.")] = 48,
    sampled: Annotated[int, typer.Option(min=2, help="Chunks that are timed.")] = 8,
    rounds: Annotated[int, typer.Option(min=1, help="How often those are timed.")] = 3,
    whole_up_to: Annotated[int, typer.Option(help="Longest haystack that each way reads.")] = 32_768,
    budget: Annotated[int, typer.Option(help="Tokens that headway reads per KV head and step.")] = 512,
    question: Annotated[str, typer.Option(help="What heads that stream read for it: near or all.")] = "near",
    peer_seconds: Annotated[
        float, typer.Option(min=0, help="Time for each run of OpenVINO GenAI; 0: without it.")
    ] = 0.0,
) -> None:
    """Measure and print the table."""
    peer_seconds = openvino_runs.affordable(peer_seconds)
    contexts = context or ([8192] if quick else [8192, 32_768, 131_072])
    plan = Plan(
        task or ["some_keys", "many_keys", "key_value"], count, haystacks, whole_up_to, sampled, rounds
    )
    profiles = profile or ["duo", "retrieval", "layers"]
    sparsities = sparsity or [0.25, 0.5, 0.75, 0.8]
    if quick:
        plan, steps = Plan(["key_value"], 6, 1, 8192, 2, 1), 16
        profiles, sparsities = ["layers"], [0.5, 0.8]
    loaded = load(ModelConfig(name="needle", dtype="float32"))
    wanted = [(kind, share) for kind in profiles for share in sparsities]
    methods = [serving(loaded, "dense"), serving(loaded, "headway", budget=budget)]
    methods += [serving(loaded, "dense", *one, question=question) for one in wanted]
    methods += [
        serving(loaded, "headway", kind, max(sparsities), question=question, budget=budget)
        for kind in profiles
    ]
    kept = frozenset().union(
        *(each.sidecars() for one in methods for each in (one.prefill, one.decode) if each)
    )
    session = PrefillSession(loaded, max(contexts) + ROOM, kept)
    rows: list[dict[str, Any]] = []
    for length in contexts:
        fresh = [replace(one, tallies={}) for one in methods]
        rows += measure(session, length, fresh, plan, steps, peer_seconds)
    session.close()
    table = Table(*(name.replace("_ratio_vs_", " × ") for name in rows[0]))
    for line in rows:
        table.add_row(*(str(line.get(column, "")) for column in rows[0]))
    Console(width=180).print(table)
    if json_file:
        json_file.write_text(json.dumps({"machine": machine(), "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    typer.run(main)
