"""A document in the paged cache, and decode steps over it by one method after the other."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from statistics import fmean

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from headway.engine import attention
from headway.engine.batch import Batch, Chunk
from headway.engine.cache import KVCache
from headway.engine.loaded import LoadedModel
from headway.engine.low_rank import provide_bases
from headway.engine.messages import SamplingParams, SelectionUsage, Submit
from headway.engine.methods import prefill as prefill_methods
from headway.engine.methods.decode import AnyMethod
from headway.engine.request import Sequence, granule_of
from headway.engine.runner import ModelRunner
from headway.engine.sidecars import Sidecar, WrittenPages
from headway.kernels.store_kv import store_kv

PAGE_SIZE = 64
CHUNK = 2048


@dataclass(slots=True)
class Steps:
    """What decoding gave: tokens, and seconds of each step as a whole and in attention."""

    tokens: list[int] = field(default_factory=list)
    logits: list[Tensor] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    attention: list[float] = field(default_factory=list)
    usage: SelectionUsage | None = None

    @property
    def step_seconds(self) -> float:
        """Of a step on average: a method may do its work in some steps and live on it in the others."""
        return fmean(self.seconds)

    @property
    def attention_seconds(self) -> float:
        """The same of attention alone."""
        return fmean(self.attention)


class Session:
    """One loaded model over a cache that holds one document, question and answer at a time."""

    def __init__(self, loaded: LoadedModel, tokens: int, sidecars: frozenset[Sidecar]) -> None:
        self.loaded = loaded
        num_pages = -(-tokens // PAGE_SIZE)
        self.cache = KVCache(loaded.specs, num_pages, PAGE_SIZE, loaded.dtype, loaded.device, sidecars)
        provide_bases(loaded, self.cache, tokens)
        self.runner = ModelRunner(loaded, self.cache)
        self._pages = list(range(num_pages))

    def read(self, tokens: list[int], start: int = 0) -> float:
        """Prefill `tokens` from position `start` on, densely; returns the seconds it took."""
        sequence = self._sequence(tokens)
        began = time.perf_counter()
        for first in range(start, len(tokens), CHUNK):
            length = min(CHUNK, len(tokens) - first)
            last = first + length == len(tokens)
            self.runner.run(Batch((Chunk(sequence, first, length, samples=last),)))
        return time.perf_counter() - began

    def fill(self, keys_values: list[tuple[Tensor, Tensor]]) -> None:
        """Take over a document's keys and values [1, Hkv, N, D] of every layer instead of reading it."""
        length = keys_values[0][0].shape[2]
        slots = torch.arange(length)
        written = WrittenPages.of([(self._pages, 0, length)], PAGE_SIZE, self.loaded.device)
        for layer_idx, (key, value) in enumerate(keys_values):
            rows = key[0].transpose(0, 1)
            keys, values = self.cache.pages(layer_idx)
            store_kv(rows, value[0].transpose(0, 1), keys, values, slots)
            self.cache.sidecars.write(layer_idx, rows, keys, written, slots)

    def fill_randomly(self, tokens: int) -> None:
        """Normally distributed keys and values of a document that nobody wrote."""
        self.fill(
            [
                (
                    torch.randn(1, spec.num_kv_heads, tokens, spec.key_dim),
                    torch.randn(1, spec.num_kv_heads, tokens, spec.value_dim),
                )
                for spec in self.loaded.specs
            ]
        )

    def decode(
        self,
        prompt: list[int],
        method: AnyMethod | None,
        forced: list[int] | None = None,
        steps: int = 0,
        prefill: prefill_methods.AnyMethod | None = None,
    ) -> Steps:
        """Answer a prompt that has been read: along `forced` tokens, or greedily for `steps` tokens.

        The last tokens of the prompt are computed anew, by `prefill`, as far as the method must see them, one
        at least.
        """
        sequence = self._sequence(prompt, method, prefill)
        done = Steps()
        start = min(sequence.observed_from, len(prompt) - 1)
        token = -1
        for step in range(len(forced) if forced is not None else steps):
            if step:
                sequence.tokens.append(token)
                start = len(sequence.tokens) - 1
            chunk = Chunk(sequence, start, len(sequence.tokens) - start, samples=True)
            with timed_attention() as inside:
                began = time.perf_counter()
                logits = self.runner.run(Batch((chunk,)))[-1]
                seconds = time.perf_counter() - began
            drawn = int(logits.argmax())
            done.tokens.append(drawn)
            done.logits.append(logits)
            if step:  # the first one belongs to the prompt
                done.seconds.append(seconds)
                done.attention.append(inside[0])
            token = drawn if forced is None else forced[step]
        done.usage = self.runner.release(sequence)
        return done

    @contextmanager
    def detached(self) -> Iterator[tuple[PreTrainedModel, Callable[[int], DynamicCache]]]:
        """The model with transformers' SDPA, and what fills a cache of its own from our first pages."""
        self.runner.close()
        model = self.loaded.model
        loaded_with = model.config._attn_implementation
        model.set_attn_implementation("sdpa")

        def filled(tokens: int) -> DynamicCache:
            cache = DynamicCache(config=model.config)
            for spec in self.loaded.specs:
                key, value = (
                    pages.flatten(0, 1)[:tokens].transpose(0, 1).unsqueeze(0).contiguous()
                    for pages in self.cache.pages(spec.layer_idx)
                )
                cache.update(key, value, spec.layer_idx)
            return cache

        try:
            yield model, filled
        finally:
            model.set_attn_implementation(loaded_with)
            self.runner = ModelRunner(self.loaded, self.cache)

    @contextmanager
    def keeping(self, sidecars: frozenset[Sidecar]) -> Iterator[None]:
        """Bring only these sidecars up to date, as an engine that serves one method would."""
        everything = self.cache.sidecars
        self.cache.sidecars = everything.only(sidecars)
        try:
            yield
        finally:
            self.cache.sidecars = everything

    def close(self) -> None:
        """Give the model back."""
        self.runner.close()

    def _sequence(
        self,
        tokens: list[int],
        method: AnyMethod | None = None,
        prefill: prefill_methods.AnyMethod | None = None,
    ) -> Sequence:
        submit = Submit(request_id="benchmark", prompt=tokens, sampling=SamplingParams())
        sequence = Sequence(submit, list(tokens), 4096, rope_length=len(tokens) + 4096, decode=method)
        sequence.pages = self._pages
        if prefill is not None and len(tokens) > prefill.settings.dense_below:
            sequence.prefill, sequence.granule = prefill, granule_of(prefill, PAGE_SIZE)
        return sequence


@contextmanager
def timed_attention() -> Iterator[list[float]]:
    """Seconds spent in the attention of all layers, in the list's only element."""
    original = attention.PagedStep.attend
    total = [0.0]

    def attend(*args: object, **options: object) -> Tensor:
        began = time.perf_counter()
        out: Tensor = original(*args, **options)  # type: ignore[arg-type]
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        total[0] += time.perf_counter() - began
        return out

    attention.PagedStep.attend = attend  # type: ignore[method-assign, assignment]
    try:
        yield total
    finally:
        attention.PagedStep.attend = original  # type: ignore[method-assign]
