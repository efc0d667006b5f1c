"""How much memory one step needs above weights and cache, measured by a dry run."""

import threading
from collections.abc import Callable, Mapping

import psutil
import torch

from headway.engine.batch import Batch, Chunk
from headway.engine.cache import KVCache
from headway.engine.cache_layout import HeadOrder
from headway.engine.loaded import LoadedModel
from headway.engine.messages import SamplingParams, Submit
from headway.engine.methods.prefill import AnyMethod
from headway.engine.request import Sequence, granule_of
from headway.engine.runner import ModelRunner

PAGE_SIZE = 64
SAMPLING_SECONDS = 0.001


def activation_peak(
    loaded: LoadedModel,
    tokens: int,
    context: int,
    orders: Mapping[int, HeadOrder] | None = None,
    prefill: AnyMethod | None = None,
) -> int:
    """Bytes that a chunk of `tokens` over `context` cached tokens needs above the weights.

    Args:
        orders: by layer_idx, of layers whose heads are put in order on their way to the cache.
        prefill: what selects for the chunk, which then begins with a granule; None: it is dense.

    On CUDA it is what the allocator saw; on a CPU the growth of this process's resident memory, sampled every
    millisecond. No request must run meanwhile.
    """
    if prefill is not None:
        context -= context % granule_of(prefill, PAGE_SIZE)
    length = context + tokens
    ids = [token % loaded.vocab_size for token in range(length)]
    submit = Submit(request_id="dry-run", prompt=ids, sampling=SamplingParams(max_tokens=1))
    sequence = Sequence(submit, ids, max_tokens=1, rope_length=length + 1, prefill=prefill)
    # Every page of the sequence is the same one: what is attended does not matter, only how much.
    sequence.pages = [0] * -(-length // PAGE_SIZE)
    batch = Batch((Chunk(sequence, context, tokens, samples=True),))
    sidecars = () if prefill is None else prefill.sidecars()
    cache = KVCache(loaded.specs, 1, PAGE_SIZE, loaded.dtype, loaded.device, sidecars)
    runner = ModelRunner(loaded, cache, orders)
    try:
        if loaded.device.type == "cuda":
            return _allocator_growth(loaded.device, lambda: runner.run(batch))
        return _resident_growth(lambda: runner.run(batch))
    finally:
        runner.close()


def _allocator_growth(device: torch.device, work: Callable[[], object]) -> int:
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    work()
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device) - before


def _resident_growth(work: Callable[[], object]) -> int:
    process = psutil.Process()
    before = peak = int(process.memory_info().rss)
    done = threading.Event()

    def watch() -> None:
        nonlocal peak
        while not done.wait(SAMPLING_SECONDS):
            peak = max(peak, int(process.memory_info().rss))

    watcher = threading.Thread(target=watch, name="headway-resident-memory", daemon=True)
    watcher.start()
    try:
        work()
    finally:
        done.set()
        watcher.join()
    return max(peak, int(process.memory_info().rss)) - before
