"""ModelRunner: one batch in, logits out."""

from contextlib import ExitStack

import torch

from headway.engine import forward_context, latent
from headway.engine.attention import PagedStep
from headway.engine.batch import Batch, Chunk
from headway.engine.cache import KVCache
from headway.engine.loaded import LoadedModel
from headway.engine.patch import attached
from headway.kernels.paged_attention import plan


class ModelRunner:
    """Runs batches through an unmodified Hugging Face model over a paged cache.

    The model is attached to the engine until `close`, and runs only through this runner meanwhile.
    """

    def __init__(self, loaded: LoadedModel, cache: KVCache) -> None:
        self._loaded = loaded
        self._cache = cache
        self._latents = latent.projections(loaded.model)
        self._attached = ExitStack()
        with ExitStack() as stack:
            stack.enter_context(attached(loaded.model))
            stack.enter_context(loaded.rope.attached())
            self._attached = stack.pop_all()

    def run(self, batch: Batch) -> torch.Tensor:
        """Compute the batch, leaving its keys and values in the cache.

        Returns:
            float32 [len(batch.logit_rows()), vocab_size], rows in that order.
        """
        device = self._loaded.device
        chunks = batch.chunks
        token_ids: list[int] = []
        for chunk in chunks:
            token_ids += chunk.sequence.tokens[chunk.start : chunk.end]
        input_ids = torch.tensor(token_ids, device=device).unsqueeze(0)
        positions = torch.cat([torch.arange(chunk.start, chunk.end) for chunk in chunks])
        slots = torch.cat([self._slots(chunk) for chunk in chunks])
        step = PagedStep(
            specs=self._loaded.specs,
            cache=self._cache,
            latents=self._latents,
            plan=plan(
                [chunk.length for chunk in chunks],
                [chunk.end for chunk in chunks],
                [chunk.sequence.pages for chunk in chunks],
                self._cache.page_size,
                device,
            ),
            slot_mapping=slots.to(device),
            rope_groups=self._rope_groups(chunks),
        )
        with torch.inference_mode(), forward_context.entered(step):
            output = self._loaded.model(
                input_ids=input_ids,
                position_ids=positions.to(device).unsqueeze(0),
                use_cache=False,
                logits_to_keep=torch.tensor(batch.logit_rows(), dtype=torch.long, device=device),
            )
            logits: torch.Tensor = output.logits[0].float()
        return logits

    def close(self) -> None:
        """Undo the patching; the model is as it was."""
        self._attached.close()

    def _slots(self, chunk: Chunk) -> torch.Tensor:
        page_size = self._cache.page_size
        first = chunk.start // page_size
        pages = torch.tensor(chunk.sequence.pages[first : (chunk.end - 1) // page_size + 1])
        positions = torch.arange(chunk.start, chunk.end)
        return pages[positions // page_size - first] * page_size + positions % page_size

    def _rope_groups(self, chunks: tuple[Chunk, ...]) -> list[tuple[int, torch.Tensor]]:
        rows, offset = [], 0
        for chunk in chunks:
            rows.append(range(offset, offset + chunk.length))
            offset += chunk.length
        lengths = [chunk.sequence.rope_length for chunk in chunks]
        groups = self._loaded.rope.groups(lengths, rows)
        return [(length, torch.tensor(members, device=self._loaded.device)) for length, members in groups]
