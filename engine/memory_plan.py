"""MemoryPlan: how many pages fit, and the longest prompt that really does."""

from dataclasses import dataclass

import torch

from headway.engine.activation import activation_peak
from headway.engine.cache import page_bytes
from headway.engine.cache_layout import CacheLayout
from headway.engine.config import EngineConfig
from headway.engine.device_memory import device_memory
from headway.engine.errors import ConfigError
from headway.engine.loaded import LoadedModel
from headway.engine.methods.prefill import AnyMethod
from headway.engine.recipes import Recipes
from headway.engine.scheduler import SCORED_ROWS
from headway.engine.selection.head_route import HeadRoutes
from headway.engine.sidecars import sidecar_bytes
from headway.engine.streaming_pages import REUSE_TOKENS, StreamingNeeds, most_pages

GIB = 2**30
CPU_DRY_RUN_CONTEXT = 16_384
"""On a CPU, attention reads the cache in pieces of bounded size: more context takes time but no memory."""
DOCUMENT = 32_768
"""Tokens of what is called a document."""
COPIES_OF_LOGITS = 3
"""The model's logits, the sampler's copy, and its sorted or exponentiated one."""
COPIES_OF_STATES = 2
"""What a step has begun with is there until it has succeeded; and a group of requests changes by copying."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Needs:
    """What the model takes, in bytes, beside its KV pages.

    Attributes:
        page: one KV page with its sidecars.
        sidecars: the sidecars of one page.
        activations: the measured peak of one chunk of `chunk` tokens over `chunk_context` cached ones.
        logits: rows of logits of one step, with what sampling makes of them.
        states: what decode methods remember of as many requests as may run.
        streaming: pages of heads that stream; None: these lie in the others.
    """

    weights: int
    page: int
    sidecars: int
    activations: int
    logits: int
    states: int
    chunk: int
    chunk_context: int
    streaming: StreamingNeeds | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryPlan:
    """The division of the device's memory.

    Attributes:
        total, free: bytes of the device, the latter with the weights loaded.
        num_pages: KV pages that fit.
        max_context: longest prompt + answer in tokens, by the pages and by `limit`.
        limit: the longest context that the model or its configuration allows.
        streaming_pages: pages of heads that stream.
        kept_context: what max_context would be if these kept everything; None: they do.
    """

    needs: Needs
    total: int
    free: int
    num_pages: int
    page_size: int
    max_context: int
    limit: int
    streaming_pages: int = 0
    kept_context: int | None = None

    def __str__(self) -> str:
        """Several lines for people."""
        needs, per_token = self.needs, self.needs.page / self.page_size
        by = "the limit of the context" if self.max_context == self.limit else "the memory for KV pages"
        documents = self.num_pages // -(-DOCUMENT // self.page_size)
        return "\n".join(
            (
                f"memory        {_size(self.free)} free of {_size(self.total)}, weights loaded",
                f"weights       {_size(needs.weights)}",
                f"activations   {_size(needs.activations)}, measured: {needs.chunk} tokens over "
                f"{needs.chunk_context} cached ones",
                f"logits        {_size(needs.logits)}",
                *self._state_line(),
                f"KV pages      {_size(self.num_pages * needs.page)}: {self.num_pages} pages of "
                f"{self.page_size} tokens, {_size(round(per_token))} a token",
                *self._sidecar_line(),
                *self._streaming_line(),
                f"longest prompt that fits: {self.max_context - 1} tokens, by {by}{self._otherwise()}",
                f"documents of 32k tokens held at once: {documents}",
            )
        )

    def _state_line(self) -> list[str]:
        size = self.needs.states
        return [f"states        {_size(size)}: what decode methods remember of requests"] if size else []

    def _sidecar_line(self) -> list[str]:
        size = self.num_pages * self.needs.sidecars
        return [f"of which      {_size(size)} are sidecars, which methods choose by"] if size else []

    def _streaming_line(self) -> list[str]:
        if self.needs.streaming is None:
            return []
        size = (self.streaming_pages + 1) * self.needs.streaming.page
        return [f"streaming     {_size(size)}: {self.streaming_pages} pages of sinks and windows"]

    def _otherwise(self) -> str:
        return "" if self.kept_context is None else f" ({self.kept_context - 1} if no head dropped anything)"


def plan_memory(
    loaded: LoadedModel,
    config: EngineConfig,
    layout: CacheLayout,
    recipes: Recipes,
    routes: HeadRoutes | None = None,
) -> MemoryPlan:
    """Measure what the loaded model needs on its device and divide the memory.

    Args:
        recipes: what is served, and what it keeps beside the pages.
        routes: which heads stream; None: none.

    Raises:
        ConfigError: the memory does not hold what the configuration asks for, with what to lower.
    """
    total, free = device_memory(loaded.device)
    limit = context_limit(config.model.max_context, loaded.max_context)
    size = config.cache.page_size
    beside = sidecar_bytes(recipes.sidecars, layout.specs, size, loaded.dtype)
    page = page_bytes(layout.specs, size, loaded.dtype) + beside
    most = min(limit, max(1, _for_pages(free, config) // page) * config.cache.page_size)
    chunk = min(config.scheduler.max_step_tokens, most)
    context = most - chunk
    if loaded.device.type == "cpu":
        context = min(context, CPU_DRY_RUN_CONTEXT)
    rows = config.scheduler.max_running + SCORED_ROWS
    tensors = (*loaded.model.parameters(), *loaded.model.buffers())
    needs = Needs(
        weights=sum(tensor.nbytes for tensor in tensors),
        page=page,
        sidecars=beside,
        activations=_measure(loaded, layout, chunk, context, recipes.default_prefill),
        logits=rows * loaded.vocab_size * torch.float32.itemsize * COPIES_OF_LOGITS,
        states=config.scheduler.max_running * recipes.state_bytes(most) * COPIES_OF_STATES,
        chunk=chunk,
        chunk_context=context,
        streaming=_streaming(layout, routes, loaded.dtype, config, limit, recipes.dense_below),
    )
    return divide(needs, total, free, limit, config)


def divide(needs: Needs, total: int, free: int, limit: int, config: EngineConfig) -> MemoryPlan:
    """Divide `free` bytes of a device between what the model needs and KV pages.

    Raises:
        ConfigError: too little memory, with what to lower.
    """
    besides = needs.activations + needs.logits + needs.states
    available = _for_pages(free, config)
    if config.cache.memory_gib is None:
        available -= besides
    elif available + besides > free:
        raise ConfigError(
            f"cache.memory_gib is {config.cache.memory_gib:g}, but beside a chunk of {needs.chunk} tokens "
            f"only {_size(max(0, free - besides))} of memory are free; lower it, scheduler.max_running or "
            "scheduler.max_step_tokens"
        )
    available = max(0, available)
    num_pages, streaming_pages = available // needs.page, 0
    page_size, kept_context = config.cache.page_size, None
    if needs.streaming is not None:
        kept_context = min(limit, available // (needs.page + needs.streaming.page) * page_size)
        num_pages = max(0, needs.streaming.fitting(available, needs.page))
        streaming_pages = needs.streaming.pages(num_pages)
    if num_pages * page_size < 2:
        memory = "memory_fraction" if config.cache.memory_gib is None else "memory_gib"
        raise ConfigError(
            f"no KV page of {_size(needs.page)} fits: {_size(free)} are free and a chunk of {needs.chunk} "
            f"tokens takes {_size(besides)}; raise cache.{memory}, lower scheduler.max_step_tokens, "
            "scheduler.max_running or cache.page_size, or choose a smaller model.dtype"
        )
    wanted = config.model.max_context
    if wanted is not None and wanted > num_pages * page_size:
        raise ConfigError(
            f"model.max_context is {wanted}, but the memory holds {num_pages * page_size} tokens; lower it, "
            "lower scheduler.max_step_tokens, or give the KV pages more memory"
        )
    return MemoryPlan(
        needs=needs,
        total=total,
        free=free,
        num_pages=num_pages,
        page_size=page_size,
        max_context=min(limit, num_pages * page_size),
        limit=limit,
        streaming_pages=streaming_pages,
        kept_context=kept_context,
    )


def context_limit(wanted: int | None, own: int) -> int:
    """The longest context to serve, given the configured one and the model's own limit.

    Raises:
        ConfigError: the configured one is beyond the model's.
    """
    if wanted is not None and wanted > own:
        raise ConfigError(
            f"model.max_context is {wanted}, but the model is made for {own} tokens; lower it, or extend the "
            "model with model.rope_scaling"
        )
    return wanted or own


def _streaming(
    layout: CacheLayout, routes: HeadRoutes | None, dtype: torch.dtype, config: EngineConfig, limit: int,
    dense_below: int,
) -> StreamingNeeds | None:  # fmt: skip
    if routes is None or not layout.streaming:
        return None
    size = config.cache.page_size
    return StreamingNeeds(
        page=page_bytes(layout.streaming, size, dtype),
        most=most_pages(routes, size, config.scheduler.max_step_tokens, dense_below, limit),
        least=most_pages(routes, size, REUSE_TOKENS, 0, limit),
        document=-(-DOCUMENT // size),
        prompts=config.scheduler.max_partial_prefills,
        sequences=config.scheduler.max_running,
    )


def _for_pages(free: int, config: EngineConfig) -> int:
    if config.cache.memory_gib is not None:
        return int(config.cache.memory_gib * GIB)
    return int(config.cache.memory_fraction * free)


def _measure(
    loaded: LoadedModel, layout: CacheLayout, chunk: int, context: int, prefill: AnyMethod | None
) -> int:
    try:
        return activation_peak(loaded, chunk, context, layout.orders, prefill)
    except (torch.OutOfMemoryError, MemoryError) as error:
        raise ConfigError(
            f"a chunk of {chunk} tokens over {context} cached ones does not fit the memory; lower "
            "scheduler.max_step_tokens or model.max_context"
        ) from error


def _size(size: int) -> str:
    number = float(size)
    for unit in ("bytes", "KiB", "MiB"):
        if number < 1024:
            return f"{number:.4g} {unit}"
        number /= 1024
    return f"{number:.4g} GiB"
