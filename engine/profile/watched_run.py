"""WatchedRun: one sequence at a time through the model, in chunks over a paged cache, each layer watched.

What `ModelRunner` does for requests, for profiles: no scheduler, no selection, bounded memory at any length.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor

from headway.engine import forward_context, latent
from headway.engine.attention import PagedStep
from headway.engine.cache import KVCache
from headway.engine.errors import ConfigError
from headway.engine.forward_context import LayerCall, rows
from headway.engine.layer_spec import LayerSpec
from headway.engine.loaded import LoadedModel
from headway.engine.lone_step import lone_step
from headway.engine.patch import attached

PAGE_SIZE = 64
CHUNK = 1024

Watch = Callable[[LayerSpec, Tensor, Tensor], None]
"""(spec, queries [T, Hq, Dk] of this chunk, keys [n, Hkv, Dk] so far, a view), both after their rotation; the
queries are the last T of the n tokens. Called layer by layer."""


class WatchedRun:
    """A context: the model is attached while it is open.

    Args:
        longest: tokens that a sequence may have.

    Raises:
        ConfigError: the model's context is shorter.
    """

    def __init__(self, loaded: LoadedModel, longest: int) -> None:
        if longest > loaded.max_context:
            raise ConfigError(f"length: must be at most the model's {loaded.max_context}, not {longest}")
        self._loaded = loaded
        self._longest = longest
        pages = -(-longest // PAGE_SIZE)
        self._cache = KVCache(loaded.specs, pages, PAGE_SIZE, loaded.dtype, loaded.device)
        self._latents = latent.projections(loaded.model)
        self._attached = ExitStack()
        self._silenced: dict[int, list[int]] = {}

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            stack.enter_context(attached(self._loaded.model))
            stack.enter_context(self._loaded.rope.attached())
            self._attached = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._attached.close()

    def read(self, ids: Sequence[int], watch: Watch | None = None) -> None:
        """Run a whole text; what was read before is forgotten.

        Raises:
            ValueError: it is longer than `longest`.
        """
        for at in range(0, len(ids), CHUNK):
            self.step(ids[at : at + CHUNK], at, watch, logits=1)

    def answer(
        self, before: Sequence[int], ask: Sequence[int], answer: Sequence[int], watch: Watch | None = None
    ) -> Tensor:
        """Feed a question and its true answer, `before` having been read.

        Returns:
            int64 [len(answer)] on the CPU: the likeliest token at the place of each token of the answer.
        """
        output = self.step([*ask, *answer], len(before), watch, logits=len(answer) + 1)
        likeliest: Tensor = output.logits[0, :-1].argmax(-1).cpu()
        return likeliest

    @contextmanager
    def silenced(self, heads: Sequence[tuple[int, int]]) -> Iterator[None]:
        """Let these (layer, query head) put out zeros while the context is open."""
        for layer_idx, head in heads:
            self._silenced.setdefault(layer_idx, []).append(head)
        try:
            yield
        finally:
            self._silenced.clear()

    def step(
        self, ids: Sequence[int], start: int, watch: Watch | None = None, *, logits: int, **options: Any
    ) -> Any:
        """Run one chunk behind the first `start` tokens read before; what stood there is forgotten.

        Args:
            logits: of how many of the last tokens.
            options: for the model's forward, `output_hidden_states` for one.

        Returns:
            What the model returns.

        Raises:
            ValueError: the sequence would become longer than `longest`, or the chunk is empty.
        """
        end, device = start + len(ids), self._loaded.device
        if not start < end <= self._longest:
            raise ValueError(f"tokens {start} to {end} do not fit a run of {self._longest}")
        step = lone_step(self._loaded, self._cache, start, end, self._longest, self._latents)
        context = _Watched(step, watch, self._silenced, end)
        with torch.inference_mode(), forward_context.entered(context):
            return self._loaded.model(
                input_ids=torch.tensor([list(ids)], device=device),
                position_ids=torch.arange(start, end, device=device).unsqueeze(0),
                use_cache=False,
                logits_to_keep=logits,
                **options,
            )


@dataclass(frozen=True, slots=True)
class _Watched:
    """A forward context that shows each layer's queries and keys after it has attended."""

    step: PagedStep
    watch: Watch | None
    silenced: Mapping[int, list[int]]
    length: int

    @property
    def rope_groups(self) -> Sequence[tuple[int, Tensor]]:
        return self.step.rope_groups

    def attend(self, call: LayerCall) -> Tensor:
        output = self.step.attend(call)
        spec = self.step.specs[call.layer_idx]
        if spec.layer_idx in self.silenced:
            output[..., self.silenced[spec.layer_idx], :] = 0
        if self.watch is not None:
            queries = rows(call.query)
            projection = self.step.latents.get(spec.layer_idx)
            pages, _ = self.step.cache.pages(spec.kv_source)
            keys = pages.flatten(0, 1)[: self.length]
            self.watch(spec, queries if projection is None else projection.absorb(queries), keys)
        return output
