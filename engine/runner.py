"""ModelRunner: one batch in, logits out."""

from collections.abc import Mapping
from contextlib import ExitStack

import numpy as np
import torch

from headway.engine import forward_context, latent
from headway.engine.attention import PagedStep
from headway.engine.batch import Batch, Chunk
from headway.engine.cache import KVCache
from headway.engine.cache_layout import HeadOrder
from headway.engine.few_rows import few_row_layers
from headway.engine.loaded import LoadedModel
from headway.engine.messages import SelectionUsage
from headway.engine.norms import fused_norms
from headway.engine.patch import attached
from headway.engine.request import Sequence
from headway.engine.selection.plans import plans_of
from headway.engine.selection.selection_step import selection_step
from headway.engine.selection.state import Stacks
from headway.engine.sidecars import WrittenPages
from headway.engine.step_threads import StepThreads


class ModelRunner:
    """Runs batches through an unmodified Hugging Face model over a paged cache.

    The model is attached to the engine until `close`, and runs only through this runner meanwhile.

    Args:
        orders: by `layer_idx`, of layers whose heads lie in another order in the cache than in the model.
        streaming: pages of heads that stream; None: `cache` has all heads.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        cache: KVCache,
        orders: Mapping[int, HeadOrder] | None = None,
        streaming: KVCache | None = None,
    ) -> None:
        self._loaded = loaded
        self._cache = cache
        self._orders = orders or {}
        self._streaming = streaming
        self._latents = latent.projections(loaded.model)
        self._stacks = Stacks(loaded.device)
        plain = not (self._orders or self._latents or cache.sidecars) and streaming is None
        self._fused = plain and loaded.device.type == "cpu"  # a GPU is not kept waiting by one call more
        self._threads = StepThreads(loaded.model)
        with ExitStack() as stack:
            stack.enter_context(attached(loaded.model))
            stack.enter_context(loaded.rope.attached())
            stack.enter_context(fused_norms(loaded.model))
            stack.enter_context(few_row_layers(loaded.model))
            stack.enter_context(self._threads.restored())
            self._attached = stack.pop_all()

    def run(self, batch: Batch) -> torch.Tensor:
        """Compute the batch, leaving its keys and values in the cache.

        Returns:
            float32 [len(batch.logit_rows()), vocab_size], rows in that order.
        """
        size, device = self._cache.page_size, self._loaded.device
        if device.type == "cpu":
            self._threads.choose(batch)
        plans = plans_of(batch.chunks, size, device)
        tokens: list[int] = []
        positions: list[int] = []
        slots: list[int] = []
        streaming_slots: list[int] = []
        for chunk in batch.chunks:
            tokens += chunk.sequence.tokens[chunk.start : chunk.end]
            positions += range(chunk.start, chunk.end)
            slots += self._slots(chunk, chunk.sequence.pages)
            if self._streaming is not None:
                streaming_slots += self._slots(chunk, chunk.sequence.streaming_pages)
        input_ids, position_ids, slot_mapping = self._to_device([tokens, positions, slots])
        selection = selection_step(batch, plans, self._stacks, size, device)
        streaming = None
        if self._streaming is not None:
            streaming = self._streaming, self._to_device(streaming_slots)
        step = PagedStep(
            specs=self._loaded.specs,
            cache=self._cache,
            latents=self._latents,
            plans=plans,
            slot_mapping=slot_mapping,
            written=self._written(batch.chunks) if self._cache.sidecars else None,
            selection=selection,
            rope_groups=self._rope_groups(batch.chunks),
            orders=self._orders,
            streaming=streaming,
            fused=self._fused and selection is None and len(tokens) == len(batch.chunks),
        )
        rows = batch.logit_rows()
        every_row = len(rows) == batch.num_tokens
        try:
            with torch.inference_mode(), forward_context.entered(step):
                output = self._loaded.model(
                    input_ids=input_ids.unsqueeze(0),
                    position_ids=position_ids.unsqueeze(0),
                    use_cache=False,
                    logits_to_keep=0 if every_row else self._to_device(rows),
                )
                logits: torch.Tensor = output.logits[0].float()
        except Exception:
            if selection is not None:
                selection.undo()
            raise
        if selection is not None:
            selection.done()
        return logits

    def release(self, sequence: Sequence) -> SelectionUsage | None:
        """Forget what was remembered of a sequence that ends; returns what selecting did for it."""
        state, method = sequence.selection, sequence.decode
        if state is None or method is None:
            return None
        self._stacks.forget(state)
        sequence.selection = None
        name = method.settings.method
        if not state.layer_steps:
            return SelectionUsage(method=name)
        return SelectionUsage(
            method=name,
            steps=state.steps,
            tokens_per_step=state.attended / state.layer_steps,
            kv_read_share=state.attended / state.context,
            refreshes=round(state.refreshes),
        )

    def close(self) -> None:
        """Undo the patching; the model is as it was."""
        self._attached.close()

    def _to_device(self, numbers: list[int] | list[list[int]]) -> torch.Tensor:
        return torch.from_numpy(np.array(numbers, dtype=np.int64)).to(self._loaded.device)

    def _slots(self, chunk: Chunk, pages: list[int]) -> list[int]:
        size = self._cache.page_size
        if chunk.length == 1:  # a decode: most chunks are
            return [pages[chunk.start // size] * size + chunk.start % size]
        slots: list[int] = []
        for index in range(chunk.start // size, -(-chunk.end // size)):
            first, begin = pages[index] * size, index * size
            slots += range(first + max(chunk.start - begin, 0), first + min(chunk.end - begin, size))
        return slots

    def _written(self, chunks: tuple[Chunk, ...]) -> WrittenPages:
        runs = ((chunk.sequence.pages, chunk.start, chunk.end) for chunk in chunks)
        return WrittenPages.of(runs, self._cache.page_size, self._loaded.device)

    def _rope_groups(self, chunks: tuple[Chunk, ...]) -> list[tuple[int, torch.Tensor]]:
        rows, offset = [], 0
        for chunk in chunks:
            rows.append(range(offset, offset + chunk.length))
            offset += chunk.length
        groups = self._loaded.rope.groups([chunk.sequence.rope_length for chunk in chunks], rows)
        return [(length, self._to_device(members)) for length, members in groups]
