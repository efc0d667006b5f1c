"""Headway against transformers' `generate()` and its continuous batching, on the same weights, in one run.

    python -m benchmarks.serving [--quick] [--json FILE] [--rounds N] [--skip WORD] [--against PEER]

Each peer runs in a process of its own, one after the other, float32, greedy, all cores; with several rounds
the peers alternate and the best of each counts. Ratios are speed-ups (above 1: Headway is faster); memory is
theirs over ours.
"""

import json
import os
import platform
import subprocess
import sys
import tempfile
from collections import defaultdict
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from benchmarks.peers import PEERS
from benchmarks.workloads import FULL, QUICK, Case, model_folder

OURS = "headway"
Results = dict[tuple[str, str], dict[str, float]]


def measure(peer: str, cases: list[Case], folder: Path) -> list[dict[str, Any]]:
    """Run `cases` of one model with one peer in a fresh process."""
    command = [sys.executable, "-m", "benchmarks.peers", peer, str(folder)]
    payload = json.dumps([case.as_dict() for case in cases])
    done = subprocess.run(command, input=payload, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{peer} failed:\n{done.stderr}")
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith('{"case"')]


def best(a: dict[str, float] | None, b: dict[str, float]) -> dict[str, float]:
    """The better of two rounds: highest throughput, lowest latency and memory."""
    if a is None:
        return b
    return {
        "tokens_per_second": max(a["tokens_per_second"], b["tokens_per_second"]),
        "ttft": min(a["ttft"], b["ttft"]),
        "peak_bytes": min(a["peak_bytes"], b["peak_bytes"]),
    }


def ratios(results: Results, cases: list[Case], peers: list[str]) -> list[dict[str, Any]]:
    """One row a case and peer; a second question is also set against our own first one."""
    rows = []

    def row(case: str, peer: str, ours: dict[str, float], theirs: dict[str, float]) -> None:
        rows.append(
            {
                "case": case,
                "peer": peer,
                "throughput_ratio": round(ours["tokens_per_second"] / theirs["tokens_per_second"], 3),
                "ttft_ratio": round(theirs["ttft"] / ours["ttft"], 3),
                "memory_ratio": round(theirs["peak_bytes"] / ours["peak_bytes"], 3),
            }
        )

    for case in cases:
        ours = results[case.name, OURS]
        for peer in peers:
            row(case.name, peer, ours, results[case.name, peer])
        if case.second_question:
            row(
                case.name,
                "headway, first question",
                ours,
                results[case.name.replace("second", "first"), OURS],
            )
    return rows


def cpu_name() -> str:
    """The processor as the system calls it."""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    names = ("torch", "transformers", "headway")
    return {
        "cpu": cpu_name(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        **{name: version(name) for name in names},
    }


def main(
    quick: Annotated[bool, typer.Option(help="Small cases only; ends within 50 s on two cores.")] = False,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write rows and machine here.")] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Alternate the peers this often; the best counts.")] = 1,
    skip: Annotated[list[str] | None, typer.Option(help="Leave out the cases whose name holds this.")] = None,
    against: Annotated[
        list[str] | None, typer.Option(help="Only these peers: generate, continuous_batching.")
    ] = None,
) -> None:
    """Measure and print the table."""
    others = [peer for peer in PEERS if peer != OURS]
    if unknown := set(against or []).difference(others):
        raise typer.BadParameter(
            f"{', '.join(unknown)}: choose from {', '.join(others)}", param_hint="--against"
        )
    peers = against or others
    cases = [case for case in (QUICK if quick else FULL) if not any(word in case.name for word in skip or [])]
    console = Console()
    by_model: dict[str, list[Case]] = defaultdict(list)
    for case in cases:
        by_model[case.model].append(case)
    results: Results = {}
    with tempfile.TemporaryDirectory() as scratch:
        for model, model_cases in by_model.items():
            folder = model_folder(model, Path(scratch))
            for _ in range(rounds):
                for peer in [OURS, *peers]:
                    with console.status(f"{model}: {peer}"):
                        for result in measure(peer, model_cases, folder):
                            key = (result.pop("case"), peer)
                            results[key] = best(results.get(key), result)
    rows = ratios(results, cases, peers)
    table = Table("case", "against", "throughput ×", "time to first token ×", "memory ×")
    for item in rows:
        table.add_row(*(str(value) for value in item.values()))
    console.print(table)
    if json_file:
        absolute = [{"case": case, "peer": peer, **values} for (case, peer), values in results.items()]
        payload = {"machine": machine(), "rows": rows, "measured": absolute}
        json_file.write_text(json.dumps(payload, indent=1) + "\n")


if __name__ == "__main__":
    typer.run(main)
