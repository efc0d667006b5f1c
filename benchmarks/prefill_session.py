"""A prompt read chunk by chunk by one prefill method after the other, as the engine would."""

import time
from dataclasses import dataclass

import torch
from transformers import DynamicCache

from benchmarks.decode_session import CHUNK, Session, timed_attention
from benchmarks.prefill_sampling import Chunks, causal_pairs, sampled
from headway.engine.batch import Batch, Chunk
from headway.engine.methods.prefill import AnyMethod
from headway.engine.request import Sequence
from headway.engine.selection.prompt_reads import PromptReads
from headway.engine.sidecars import Sidecar


@dataclass(frozen=True, slots=True)
class ChunkCost:
    """Seconds of one chunk as a whole and in attention, and pairs of a query and a key read per head."""

    seconds: float
    attention: float
    pairs: float


class PrefillSession(Session):
    """Prefill over the cache of a `Session`; method None is our dense path."""

    def prompt(self, tokens: list[int], method: AnyMethod | None) -> Sequence:
        """A prompt that has not been read."""
        return self._sequence(tokens, prefill=method)

    def chunks(self, sequence: Sequence) -> Chunks:
        """The chunks in which the engine reads a prompt that is alone."""
        found: list[tuple[int, int]] = []
        start, most = 0, max(CHUNK, sequence.granule)
        while start < sequence.num_prompt:
            length = sequence.chunk_length(start, min(most, sequence.num_prompt - start))
            found.append((start, length))
            start += length
        return found

    def sample(self, sequence: Sequence, chunks: Chunks, count: int) -> list[int]:
        """Which of the chunks to time where not all are."""
        method = sequence.prefill
        return sampled(chunks, count, None if method is None else method.settings.dense_below)

    def read_chunk(
        self, sequence: Sequence, start: int, length: int, also: frozenset[Sidecar] = frozenset()
    ) -> ChunkCost:
        """Read one chunk behind what is in the cache already; the last one gives the first token.

        Written beside the KV are the method's sidecars, and `also`.
        """
        method = sequence.prefill
        sidecars = also if method is None else also | method.sidecars()
        sequence.prompt_reads = PromptReads()
        chunk = Chunk(sequence, start, length, samples=start + length == sequence.num_prompt)
        with self.keeping(sidecars), timed_attention() as inside:
            began = time.perf_counter()
            self.runner.run(Batch((chunk,)))
            seconds = time.perf_counter() - began
        usage = sequence.prompt_reads.usage("")
        return ChunkCost(seconds, inside[0], usage.density * causal_pairs(start, length))

    def is_right(self, prefix: list[int], ask: list[int], answer: list[int]) -> bool:
        """Whether greedy decoding answers a question behind a haystack that has been read."""
        sequence = self._sequence(prefix + ask + answer[:-1])
        start, length = len(prefix), len(ask) + len(answer) - 1
        chunk = Chunk(sequence, start, length, samples=True, prompt_logprob_rows=length - 1)
        with self.keeping(frozenset()):
            logits = self.runner.run(Batch((chunk,)))
        return bool((logits[-len(answer) :].argmax(-1).cpu() == torch.tensor(answer)).all())

    def transformers_seconds(self, prompt: list[int]) -> float:
        """Seconds in which transformers reads a prompt, as `generate()` does: one causal SDPA forward."""
        with self.detached() as (model, _), torch.inference_mode():
            ids = torch.tensor([prompt], device=model.device)
            model(ids[:, :64])  # to warm up
            cache = DynamicCache(config=model.config)
            began = time.perf_counter()
            int(model(ids, past_key_values=cache, logits_to_keep=1).logits.argmax())
            return time.perf_counter() - began
