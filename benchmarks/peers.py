"""One peer in a process of its own: loads a model, runs cases, prints one JSON line a case.

    python -m benchmarks.peers PEER MODEL_FOLDER < cases.json

Times exclude loading and one warm-up request. Memory is the peak resident set during the case, less what the
process held once the libraries were imported: weights, KV and activations. For Headway it is the engine's
process.
"""

import asyncio
import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import (
    AutoModelForCausalLM,
    ContinuousBatchingConfig,
    GenerationConfig,
    StoppingCriteria,
    StoppingCriteriaList,
)

from benchmarks.workloads import Case
from headway.engine.config import EngineConfig
from headway.engine.config_section import parse
from headway.engine.messages import SamplingParams, Submit, Tokens
from headway.engine.process_client import ProcessClient

CB_PAGE = 256


@dataclass(frozen=True, slots=True)
class Timing:
    """Wall seconds of the whole case, and of each request until its first token."""

    seconds: float
    first_tokens: list[float]
    generated: int


Prompts = list[list[int]]


@dataclass(frozen=True, slots=True)
class Peer:
    """A loaded model: what runs prompts for a number of tokens, and the process in which it does."""

    run: Callable[[Prompts, int], Timing]
    pid: int


def headway(folder: Path) -> Peer:
    """Our engine in its own process, as the server runs it, with default settings."""
    client = ProcessClient(parse(EngineConfig, {"model": {"name": str(folder), "dtype": "float32"}}))

    async def one(prompt: list[int], answer: int, start: float) -> tuple[float, int]:
        sampling = SamplingParams(max_tokens=answer, temperature=0.0, ignore_eos=True)
        first, count = 0.0, 0
        submit = Submit(request_id=f"{time.monotonic_ns()}", prompt=prompt, sampling=sampling)
        async for event in client.generate(submit):
            if isinstance(event, Tokens):
                first = first or time.perf_counter() - start
                count += len(event.token_ids)
        return first, count

    async def everyone(prompts: Prompts, answer: int) -> Timing:
        start = time.perf_counter()
        done = await asyncio.gather(*(one(prompt, answer, start) for prompt in prompts))
        seconds = time.perf_counter() - start
        return Timing(seconds, [first for first, _ in done], sum(count for _, count in done))

    return Peer(lambda prompts, answer: asyncio.run(everyone(prompts, answer)), client.pid)


class _FirstToken(StoppingCriteria):
    """Notes when generate() has its first token; stops nothing."""

    def __init__(self) -> None:
        self.at = 0.0

    def __call__(self, input_ids: torch.Tensor, *_: object, **__: object) -> torch.Tensor:
        self.at = self.at or time.perf_counter()
        return torch.zeros(len(input_ids), dtype=torch.bool)


def generate(folder: Path) -> Peer:
    """transformers `generate()` with SDPA and its own KV cache, the prompts as one batch."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()

    def run(prompts: Prompts, answer: int) -> Timing:
        ids = torch.tensor(prompts)
        first = _FirstToken()
        config = GenerationConfig(
            max_new_tokens=answer, min_new_tokens=answer, do_sample=False, pad_token_id=0
        )
        start = time.perf_counter()
        with torch.inference_mode():
            out = model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                generation_config=config,
                stopping_criteria=StoppingCriteriaList([first]),
            )
        seconds = time.perf_counter() - start
        return Timing(seconds, [first.at - start] * len(prompts), out[:, ids.shape[1] :].numel())

    return Peer(run, os.getpid())


def continuous(folder: Path) -> Peer:
    """transformers' continuous batching (`generate_batch`) with paged SDPA.

    Its cache is sized to the case: left to itself it takes, and clears, most of the machine's memory.
    """
    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="paged|sdpa"
    ).eval()

    def run(prompts: Prompts, answer: int) -> Timing:
        config = GenerationConfig(max_new_tokens=answer, do_sample=False, eos_token_id=-1, pad_token_id=0)
        blocks = sum(-(-(len(prompt) + answer) // CB_PAGE) + 1 for prompt in prompts)
        paging = ContinuousBatchingConfig(page_size=CB_PAGE, num_blocks=blocks, max_batch_tokens=2048)
        origin = time.perf_counter()
        outputs = model.generate_batch(
            prompts,
            generation_config=config,
            continuous_batching_config=paging,
            record_timestamps=True,
            warmup=False,
        )
        seconds = time.perf_counter() - origin
        answers = list(outputs.values())
        firsts = [output.timestamps[0] - output.created_time for output in answers]
        return Timing(seconds, firsts, sum(len(output.generated_tokens) for output in answers))

    return Peer(run, os.getpid())


PEERS: dict[str, Callable[[Path], Peer]] = {
    "headway": headway,
    "generate": generate,
    "continuous_batching": continuous,
}


def resident(kind: str, pid: int) -> int:
    """Bytes of a process: `VmRSS` now or `VmHWM` at the peak (Linux)."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(kind):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"{kind} is not in /proc/{pid}/status")


def reset_peak(pid: int) -> None:
    """Let VmHWM start again from here."""
    Path(f"/proc/{pid}/clear_refs").write_text("5")


def main() -> None:
    """Run every case of standard input with the peer that the command line names."""
    name, folder = sys.argv[1], Path(sys.argv[2])
    cases = [Case(**item) for item in json.load(sys.stdin)]
    libraries = resident("VmRSS", os.getpid())
    peer = PEERS[name](folder)
    vocab = json.loads((folder / "config.json").read_text())["vocab_size"]
    peer.run(Case("warm-up", "", 2, 64, 8).prompts(vocab), 8)
    for case in cases:
        if case.second_question:
            peer.run(case.prompts(vocab, question=1), case.answer)
        reset_peak(peer.pid)
        timing = peer.run(case.prompts(vocab, question=2), case.answer)
        result = {
            "case": case.name,
            "tokens_per_second": timing.generated / timing.seconds,
            "ttft": sum(timing.first_tokens) / len(timing.first_tokens),
            "peak_bytes": resident("VmHWM", peer.pid) - libraries,
        }
        print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main()
