"""OpenVINO GenAI on needle, in a process of its own: one JSON line a haystack.

    python -m benchmarks.openvino_peer MODE < job.json

Its continuous batching with float32 arithmetic, our threads, chunk size and dense tail. A prompt is read
once; its other questions find it in the prefix cache. The weights are rounded to float16, which its GGUF
reader asks for. With `steps` in the job, every answer has so many tokens, and their time is told, too; the
modes but dense are of prefill, all decode densely.
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


def load(mode: str, threads: int, kv: str, evict_to: int | None) -> genai.ContinuousBatchingPipeline:
    """needle behind a mode: dense, trishape or xattention-THRESHOLD; the rest as OpenVINO has it.

    Args:
        kv: precision of the KV cache; OpenVINO's own choice is u8.
        evict_to: tokens that its cache eviction keeps, as many at the start and the end as by default.
    """
    scheduling = genai.SchedulerConfig()
    scheduling.cache_size = CACHE_GB
    scheduling.max_num_batched_tokens = 2048
    scheduling.enable_prefix_caching = evict_to is None  # it refuses both
    kind, _, threshold = mode.partition("-")
    if kind != "dense":
        sparse = genai.SparseAttentionConfig(mode=getattr(genai.SparseAttentionMode, kind.upper()))
        sparse.num_last_dense_tokens_in_prefill = 64
        if threshold:
            sparse.xattention_threshold = float(threshold)
        scheduling.use_sparse_attention, scheduling.sparse_attention_config = True, sparse
    if evict_to is not None:
        scheduling.use_cache_eviction = True
        scheduling.cache_eviction_config = genai.CacheEvictionConfig(
            32, 128, evict_to, genai.AggregationMode.NORM_SUM
        )
    properties = {
        "INFERENCE_PRECISION_HINT": "f32",
        "KV_CACHE_PRECISION": kv,
        "INFERENCE_NUM_THREADS": threads,
    }
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "needle.gguf"
        write(path)
        return genai.ContinuousBatchingPipeline(path, scheduling, "CPU", properties)


def answer(
    pipeline: genai.ContinuousBatchingPipeline, prompt: list[int], most: int, *, forced: bool = False
) -> tuple[list[float], list[int]]:
    """Seconds to each token of greedy decoding, and the tokens: up to `most`, exactly so many if `forced`."""
    config = genai.GenerationConfig(max_new_tokens=most, do_sample=False, eos_token_id=1, ignore_eos=forced)
    began, at, tokens = time.perf_counter(), [], []
    handle = pipeline.add_request(0, openvino.Tensor(np.array([prompt], dtype=np.int64)), config)
    while pipeline.has_non_finished_requests():
        pipeline.step()
        if handle.can_read():
            for output in handle.read().values():
                tokens += output.generated_ids
                at += [time.perf_counter() - began] * len(output.generated_ids)
    return at, tokens


def main() -> None:
    """Read the haystacks of standard input."""
    job: dict[str, Any] = json.load(sys.stdin)
    steps = job.get("steps")
    pipeline = load(sys.argv[1], job["threads"], job.get("kv", "f32"), job.get("evict_to"))
    answer(pipeline, list(range(16, 528)), 4)  # to warm up
    for prefix, tails in job["haystacks"]:
        first, pace, right = [], [], 0
        for ask, expected in tails:
            at, tokens = answer(pipeline, prefix + ask, steps or len(expected), forced=bool(steps))
            first.append(at[0])
            pace.append((at[-1] - at[0]) / max(1, len(at) - 1))
            right += tokens[: len(expected)] == expected
        taken = {"seconds": first[0], "step_seconds": min(pace)}
        print(json.dumps({**taken, "right": right, "asked": len(tails)}), flush=True)


if __name__ == "__main__":
    main()
