"""OpenVINO GenAI's sparse prefill on needle, in a process of its own: one JSON line a haystack.

    python -m benchmarks.openvino_peer MODE < haystacks.json

Its continuous batching with float32 arithmetic and KV, our threads, chunk size and dense tail. A prompt is
read once; its other questions find it in the prefix cache. The weights are rounded to float16, which its
GGUF reader asks for.
"""

import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import openvino
import openvino_genai as genai

from benchmarks.needle_gguf import write

CACHE_GB = 2


def load(mode: str, threads: int) -> genai.ContinuousBatchingPipeline:
    """needle behind a mode: dense, trishape or xattention-THRESHOLD; the rest as OpenVINO has it."""
    scheduling = genai.SchedulerConfig()
    scheduling.cache_size = CACHE_GB
    scheduling.max_num_batched_tokens = 2048
    scheduling.enable_prefix_caching = True
    kind, _, threshold = mode.partition("-")
    if kind != "dense":
        sparse = genai.SparseAttentionConfig(mode=getattr(genai.SparseAttentionMode, kind.upper()))
        sparse.num_last_dense_tokens_in_prefill = 64
        if threshold:
            sparse.xattention_threshold = float(threshold)
        scheduling.use_sparse_attention, scheduling.sparse_attention_config = True, sparse
    properties = {
        "INFERENCE_PRECISION_HINT": "f32",
        "KV_CACHE_PRECISION": "f32",
        "INFERENCE_NUM_THREADS": threads,
    }
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "needle.gguf"
        write(path)
        return genai.ContinuousBatchingPipeline(path, scheduling, "CPU", properties)


def answer(
    pipeline: genai.ContinuousBatchingPipeline, prompt: list[int], most: int
) -> tuple[float, list[int]]:
    """Seconds to the first token, and up to `most` tokens of greedy decoding."""
    config = genai.GenerationConfig(max_new_tokens=most, do_sample=False, eos_token_id=1)
    began, seconds, tokens = time.perf_counter(), 0.0, []
    handle = pipeline.add_request(0, openvino.Tensor(np.array([prompt], dtype=np.int64)), config)
    while pipeline.has_non_finished_requests():
        pipeline.step()
        if handle.can_read():
            seconds = seconds or time.perf_counter() - began
            for output in handle.read().values():
                tokens += output.generated_ids
    return seconds, tokens


def main() -> None:
    """Read the haystacks of standard input."""
    job: dict[str, Any] = json.load(sys.stdin)
    pipeline = load(sys.argv[1], job["threads"])
    answer(pipeline, list(range(16, 528)), 4)  # to warm up
    for prefix, tails in job["haystacks"]:
        seconds, right = 0.0, 0
        for ask, expected in tails:
            taken, tokens = answer(pipeline, prefix + ask, len(expected))
            seconds = seconds or taken
            right += tokens == expected
        print(json.dumps({"seconds": seconds, "right": right, "asked": len(tails)}), flush=True)


if __name__ == "__main__":
    main()
