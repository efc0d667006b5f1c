"""Runs of OpenVINO GenAI in a process of their own, if it is installed."""

import json
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from typing import Any

import torch
import typer

from headway.engine.needle.tasks import Tail

DECODING: dict[str, dict[str, Any]] = {
    "openvino, f32 KV": {"kv": "f32"},
    "openvino, u8 KV": {"kv": "u8"},
    "openvino, u8 KV, 672 tokens kept": {"kv": "u8", "evict_to": 672},
}
"""Ways to keep the KV cache: u8 is its own choice, eviction what it offers to read less."""
Haystacks = list[tuple[list[int], list[Tail]]]


def affordable(seconds: float) -> float:
    """The seconds that runs may take; 0 where it is not installed."""
    if seconds and not (find_spec("openvino_genai") and find_spec("gguf")):
        typer.echo("OpenVINO GenAI is left out: it is not installed (pip install 'headway[bench]')", err=True)
        return 0.0
    return seconds


def run(mode: str, haystacks: Haystacks, limit: float, **job: Any) -> list[dict[str, Any]]:
    """What `benchmarks.openvino_peer` says of these haystacks, or of those read within `limit` seconds."""
    job |= {"threads": torch.get_num_threads(), "haystacks": haystacks}
    command = [sys.executable, "-m", "benchmarks.openvino_peer", mode]
    try:
        done = subprocess.run(command, input=json.dumps(job).encode(), capture_output=True, timeout=limit)
        output, failed = done.stdout, done.stderr.decode() if done.returncode else ""
    except subprocess.TimeoutExpired as expired:
        output, failed = expired.stdout or b"", f"stopped after {limit:g} s"
    if failed:
        typer.echo(f"openvino {mode}: {failed}", err=True)
    return [json.loads(line) for line in output.splitlines() if line.startswith(b'{"seconds"')]


def decode_rows(
    context: int, prompt: list[int], steps: int, dense_seconds: float, limit: float
) -> Iterator[dict[str, Any]]:
    """A row for each way to decode behind a prompt, read sparsely for speed; none without time."""
    haystacks: Haystacks = [(prompt[:-1], [(prompt[-1:], [])])]
    for name, settings in DECODING.items() if limit else ():
        for line in run("trishape", haystacks, limit, steps=steps, **settings):
            yield {
                "method": name,
                "context": context,
                "step_ratio_vs_dense": round(dense_seconds / line["step_seconds"], 2),
                "step_ms": round(1000 * line["step_seconds"], 2),
            }
