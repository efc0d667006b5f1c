"""Runs sequences with decode methods over tiny models: batch by batch, or through a whole engine."""

from collections.abc import Callable, Iterable
from collections.abc import Sequence as Many
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from headway.engine.build import prefix_cache
from headway.engine.cache import KVCache
from headway.engine.cache_layout import CacheLayout
from headway.engine.config import EngineConfig
from headway.engine.config_section import parse
from headway.engine.core import Engine
from headway.engine.layer_spec import LayerSpec
from headway.engine.loaded import LoadedModel
from headway.engine.low_rank import provide_bases
from headway.engine.messages import ModelInfo
from headway.engine.methods import decode
from headway.engine.methods.decode import AnyMethod
from headway.engine.methods.kind import DECODE
from headway.engine.recipes import Recipes
from headway.engine.runner import ModelRunner
from headway.engine.sampler import Sampler
from headway.engine.selection.decode_selection import DecodeSelection
from headway.engine.selection.layer_cache import LayerCache
from headway.engine.selection.layer_view import GroupStep, LayerView
from headway.engine.selection.state import SelectionState, Stack
from headway.engine.sidecars import Sidecar, SidecarStore
from headway.kernels.paged_attention import plan
from tests.engine.models.driver import Trace, pages_needed, run, sequence
from tests.engine.models.families import VOCAB

PAGE_SIZE = 8
SMALL = {"dense_below": 0, "dense_layers": 0, "sink_size": 3, "window_size": 10, "budget": 48}
"""Settings under which a context of a hundred tokens is long, as far as a method has them."""
OVERRIDES: dict[str, dict[str, Any]] = {"adaptive": {"threshold": 0.12}, "hylra": {"full_layers": [0]}}
"""Per method, where SMALL does not make it select in a model of two layers."""


def prompt(length: int, seed: int = 0) -> list[int]:
    """Random tokens."""
    return torch.randint(VOCAB, (length,), generator=torch.Generator().manual_seed(seed)).tolist()


def settings_of(name: str, **wanted: Any) -> dict[str, Any]:
    """SMALL settings of a method with some replaced, as a request would send them."""
    known = decode.load(name)[0].model_fields
    merged = SMALL | OVERRIDES.get(name, {}) | wanted
    return {"method": name} | {key: value for key, value in merged.items() if key in known}


def make(name: str, loaded: LoadedModel, **wanted: Any) -> AnyMethod:
    """A method with `settings_of`, checked against the model."""
    method = decode.load(name)[1](DECODE.parse(settings_of(name, **wanted)))
    method.check(loaded.specs, PAGE_SIZE)
    return method


@dataclass
class Job:
    """A prompt and what selects for it; `answer`: tokens to feed in place of its own."""

    prompt: list[int]
    method: AnyMethod | None = None
    answer: list[int] | None = None


def poisoned_cache(
    loaded: LoadedModel, num_pages: int, sidecars: Iterable[Sidecar], layout: CacheLayout | None = None
) -> KVCache:
    """A cache full of NaN with room for so many pages; its low-rank bases are always the same."""
    layout = layout or CacheLayout(loaded.specs)
    cache = KVCache(layout.specs, num_pages, PAGE_SIZE, loaded.dtype, loaded.device, frozenset(sidecars))
    provide_bases(loaded, cache, loaded.max_context, layout.orders)
    for spec in layout.specs:
        if spec.owns_cache:
            for tensor in (*cache.pages(spec.layer_idx), *cache.sidecars.of(spec.layer_idx).values()):
                tensor.fill_(torch.nan)
    return cache


def drive(
    loaded: LoadedModel, jobs: Many[Job], max_tokens: int, *, seed: int = 0, largest_chunk: int = 512
) -> list[Trace]:
    """Greedy decoding of all jobs side by side: random arrivals, chunk sizes and page numbers."""
    sequences = [sequence(job.prompt, max_tokens, decode=job.method) for job in jobs]
    sidecars = {sidecar for job in jobs if job.method is not None for sidecar in job.method.sidecars()}
    cache = poisoned_cache(loaded, pages_needed(sequences, PAGE_SIZE), sidecars)
    answers = [job.answer for job in jobs]
    return run(loaded, cache, sequences, seed=seed, largest_chunk=largest_chunk, answers=answers)


def assert_same(trace: Trace, expected: Trace, tolerance: float = 1e-4) -> None:
    """Same tokens, and logits within a tolerance."""
    torch.testing.assert_close(
        torch.stack(trace.logits), torch.stack(expected.logits), atol=tolerance, rtol=tolerance
    )
    assert trace.tokens == expected.tokens


Seen = Callable[[DecodeSelection, LayerView, Tensor], None]


def watch(method: AnyMethod, seen: Seen) -> AnyMethod:
    """Show every selection of a method to `seen`, with the layer and the query it is for."""
    select = method.select

    def watched(query: Tensor, layer: LayerView) -> DecodeSelection:
        selection = select(query, layer)
        seen(selection, layer, query)
        return selection

    method.select = watched  # type: ignore[method-assign]
    return method


def lone_layer(
    lengths: Many[int], *, num_heads: int = 4, num_kv_heads: int = 2, dim: int = 8, seed: int = 0, **spec: Any
) -> LayerView:
    """A layer over random keys and values in shuffled pages; the sequences are at their first step."""
    generator = torch.Generator().manual_seed(seed)
    needed = [-(-length // PAGE_SIZE) for length in lengths]
    pages = iter(torch.randperm(sum(needed), generator=generator).tolist())
    tables = [[next(pages) for _ in range(count)] for count in needed]
    keys, values = torch.randn(2, sum(needed), PAGE_SIZE, num_kv_heads, dim, generator=generator)
    shape = LayerSpec(
        layer_idx=0, kv_source=0, num_heads=num_heads, num_kv_heads=num_kv_heads, key_dim=dim, value_dim=dim,
        **{"scale": dim**-0.5} | spec,
    )  # fmt: skip
    batch, device = len(lengths), torch.device("cpu")
    nothing = torch.zeros(batch, dtype=torch.float64)
    stack = Stack(tuple(SelectionState() for _ in lengths), {}, nothing, nothing.clone())
    step = GroupStep(
        plan([1] * batch, lengths, tables, PAGE_SIZE, device), stack,
        fresh=torch.ones(batch, dtype=torch.bool), steps=torch.zeros(batch, dtype=torch.int64),
    )  # fmt: skip
    store = SidecarStore((), (), 1, PAGE_SIZE, torch.float32, device)
    return LayerView(LayerCache(shape, keys, values, store), step)


def tokens_of(layer: LayerView, row: int, cache: Tensor) -> Tensor:
    """The keys or values [n, Hkv, D] of one sequence, in order."""
    length = layer.plan.host_kv_lens[row]
    return cache[layer.plan.block_table[row].long()].flatten(0, 1)[:length]


def tiny_info(loaded: LoadedModel, num_pages: int) -> ModelInfo:
    """What an engine says of a tiny model over so many pages."""
    return ModelInfo(
        name="tiny",
        max_context=num_pages * PAGE_SIZE,
        vocab_size=loaded.vocab_size,
        eos_token_ids=(),
        dtype="float32",
        device="cpu",
        num_pages=num_pages,
        page_size=PAGE_SIZE,
        plan="",
    )


def make_engine(
    loaded: LoadedModel, num_pages: int, settings: dict[str, Any], *others: str, **scheduler: Any
) -> Engine:
    """An engine that serves one method by default and offers `others`."""
    config = parse(
        EngineConfig,
        {
            "cache": {"page_size": PAGE_SIZE},
            "scheduler": {"max_step_tokens": 64, "max_running": 8} | scheduler,
            "recipe": {"decode": settings, "requests": {"methods": [*others]}},
        },
    )
    recipes = Recipes(config.recipe, loaded.specs, PAGE_SIZE)
    return Engine(
        tiny_info(loaded, num_pages),
        config.scheduler,
        prefix_cache(loaded, num_pages, config),
        ModelRunner(loaded, poisoned_cache(loaded, num_pages, recipes.sidecars)),
        Sampler(loaded.vocab_size),
        recipes,
    )
