"""PrefillMethod: a named way to choose what a chunk of a prompt reads."""

from collections.abc import Sequence
from typing import Any, Generic, TypeVar

from torch import Tensor

from headway.engine.layer_spec import LayerSpec
from headway.engine.selection.chunk_rows import selecting_rows
from headway.engine.selection.chunk_view import ChunkView
from headway.engine.selection.forced import attend_selection
from headway.engine.selection.prefill_selection import PrefillSelection
from headway.engine.selection.prefill_settings import ChunkSettings, PrefillSettings
from headway.engine.sidecars import Sidecar

Settings = TypeVar("Settings", bound=PrefillSettings)


class PrefillMethod(Generic[Settings]):
    """Chooses what each layer reads for the queries of one chunk.

    One object serves all requests of equal settings and remembers nothing of any. A method file holds one
    `Settings` model, whose `method` names it, and one `Method`.

    Chunks begin at multiples of the method's `granule` and end there or with the prompt; only whole granules
    that the dense tail does not reach are shared through the prefix cache.

    Attributes:
        row_local: a granule's rows choose by nothing later than the granule's end, so a chunk may hold any
            number of granules. If not, each chunk is one granule: it chooses by the chunk's last queries.
    """

    row_local: bool = True

    def __init__(self, settings: Settings) -> None:
        self.settings = settings

    @property
    def granule(self) -> int:
        """Tokens that are computed in one chunk, and shared, together or not at all."""
        return self.settings.tile

    def sidecars(self) -> frozenset[Sidecar]:
        """What must be kept beside the pages."""
        return frozenset()

    def identity(self) -> dict[str, Any]:
        """What tells pages that it computed from others, beside the granule, as JSON holds it."""
        return {"settings": self.settings.model_dump(mode="json")}

    def check(self, specs: Sequence[LayerSpec], page_size: int) -> None:
        """Refuse a model that the settings do not fit; the object stays as it is.

        Raises:
            ConfigError: begins with a setting's name and a colon; what does not fit, and what is allowed.
        """

    def select(self, query: Tensor, chunk: ChunkView) -> PrefillSelection:
        """What the queries [T, Hq, Dk] read beside sinks, window and diagonal."""
        raise NotImplementedError

    def attend(self, query: Tensor, chunk: ChunkView) -> tuple[Tensor, Tensor]:
        """Attention of the chunk: out [T, Hq, Dv] and lse fp32 [T, Hq].

        A method that attends in its own way tells `chunk.count` what it reads; `pairs` counts that for the
        arguments of a `tile_attention`.
        """
        some = selecting_rows(chunk, self.settings)  # none where only a question is new
        selection = self.select(query, chunk) if some else PrefillSelection()
        return attend_selection(query, chunk, selection, self.settings)

    def attend_densely(self, query: Tensor, chunk: ChunkView) -> tuple[Tensor, Tensor]:
        """The same in one of the first layers, `dense_layers`; it counts nothing where all is read."""
        return chunk.cache.attend_own(query, chunk.plan)


Chunks = TypeVar("Chunks", bound=ChunkSettings)


class ChunkMethod(PrefillMethod[Chunks]):
    """Chooses for a whole chunk at once: prompt-global."""

    row_local = False

    @property
    def granule(self) -> int:
        """A chunk."""
        return self.settings.chunk
