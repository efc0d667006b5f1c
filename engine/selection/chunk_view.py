"""ChunkView: one layer of the paged cache, as a method sees it for one chunk of a prompt."""

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from headway.engine.selection.head_route import HeadRun
from headway.engine.selection.layer_cache import CacheView
from headway.kernels.paged_attention import AttentionPlan


@dataclass(slots=True, eq=False)
class ChunkView(CacheView):
    """The read side of one layer; the chunk's own keys are stored already.

    Attributes:
        plan: one sequence, the chunk's tokens its queries.
        num_prompt: tokens of the whole prompt.
        counted: what `count` was told, scalars on the model's device.
        streaming_plan: the plan for the pages of heads that stream; None: they have none of their own.
    """

    plan: AttentionPlan
    num_prompt: int
    counted: list[Tensor] = field(default_factory=list)
    streaming_plan: AttentionPlan | None = None

    def of_heads(self, run: HeadRun) -> "ChunkView":
        """The same layer with these heads alone; it counts with this one."""
        plan = self.streaming_plan if run.streams else None
        return replace(self, cache=self.cache.of_heads(run), plan=plan or self.plan)

    def count(self, pairs: Tensor) -> None:
        """Note how many pairs of a query and a key this layer reads, over all query heads."""
        self.counted.append(pairs)

    @property
    def start(self) -> int:
        """Position of the chunk's first token, a multiple of the method's granule."""
        return self.end - self.plan.num_tokens

    @property
    def end(self) -> int:
        """Keys there are: the chunk's last position + 1."""
        return self.plan.host_kv_lens[0]

    def tile_starts(self, tile: int) -> Tensor:
        """int32 [tiles], the position of each tile's first row."""
        starts = range(self.start, self.end, tile)
        return self.plan.memo(
            ("tile starts", tile),
            lambda: torch.tensor(starts, dtype=torch.int32, device=self.plan.device),
        )

    def keys(self, start: int = 0, stop: int | None = None) -> Tensor:
        """Keys [n, Hkv, Dk] at positions [start, stop), None: all there are; in place if they can be."""
        return self.rows_of(self.key_cache, start, self.end if stop is None else stop)

    def rows_of(self, table: Tensor, start: int, stop: int) -> Tensor:
        """Rows [n, Hkv, numbers] of a table [num_pages, rows, Hkv, numbers], counted along the sequence."""
        rows = table.shape[1]
        first, last = start // rows, -(-stop // rows)
        pages = self.plan.host_tables[0][first:last]
        if len(pages) and pages[-1] - pages[0] == len(pages) - 1 and (pages[1:] > pages[:-1]).all():
            found = table[int(pages[0]) : int(pages[-1]) + 1]
        else:
            found = table[self.plan.block_table[0, first:last].long()]
        return found.flatten(0, 1)[start - first * rows : stop - first * rows]
