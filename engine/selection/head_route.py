"""HeadRoutes: which KV heads stream, that is read sinks and window only; methods choose for the others."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any

from headway.engine.layer_spec import LayerSpec


@dataclass(frozen=True, slots=True)
class HeadRun:
    """Neighbouring KV heads of one layer that read alike: views of query and cache, which nothing copies.

    Attributes:
        spec: the layer, as if it had no other heads.
        kv_heads, heads: which KV heads and query heads of it these are.
        whole: they are all.
    """

    spec: LayerSpec
    kv_heads: slice
    heads: slice
    streams: bool
    whole: bool


class HeadRoutes:
    """The heads of one model.

    Args:
        streaming: by layer_idx, the KV heads that stream; a layer that is missing has none.

    Attributes:
        sink_size, window_size: tokens that those read.
        question_reads_all: whether they read everything for a prompt's last tokens, its `dense_tail`.
        identity: what tells these routes from others, as JSON holds it.
    """

    def __init__(
        self,
        specs: Sequence[LayerSpec],
        streaming: Mapping[int, Collection[int]],
        sink_size: int,
        window_size: int,
        *,
        question_reads_all: bool = False,
    ) -> None:
        self.sink_size, self.window_size = sink_size, window_size
        self.question_reads_all = question_reads_all
        self.identity: dict[str, Any] = {
            "streaming": {layer: sorted(heads) for layer, heads in sorted(streaming.items()) if heads},
            "sink_size": sink_size,
            "window_size": window_size,
            "question_reads_all": question_reads_all,
        }
        self._specs, self._streaming = specs, streaming
        self._runs = {spec.layer_idx: tuple(_runs(spec, streaming.get(spec.layer_idx, ()))) for spec in specs}

    def __bool__(self) -> bool:
        return any(run.streams for runs in self._runs.values() for run in runs)

    def runs(self, spec: LayerSpec) -> tuple[HeadRun, ...]:
        """The heads of a layer in order; one run where all are alike."""
        return self._runs[spec.layer_idx]

    def streaming(self, spec: LayerSpec) -> Collection[int]:
        """The KV heads of a layer that stream."""
        return self._streaming.get(spec.layer_idx, ())

    def moved_last(self, layers: Mapping[int, LayerSpec]) -> "HeadRoutes":
        """The same where these layers stand for their likes: their heads that stream come last."""
        specs = [layers.get(spec.layer_idx, spec) for spec in self._specs]
        moved = dict(self._streaming) | {
            layer: range(spec.num_kv_heads - len(self.streaming(spec)), spec.num_kv_heads)
            for layer, spec in layers.items()
        }
        return HeadRoutes(
            specs, moved, self.sink_size, self.window_size, question_reads_all=self.question_reads_all
        )


def of_heads(spec: LayerSpec, kv_heads: slice) -> tuple[LayerSpec, slice]:
    """A layer with some neighbouring KV heads alone, and which of its query heads read those."""
    group = spec.num_heads // spec.num_kv_heads
    heads = slice(kv_heads.start * group, kv_heads.stop * group)
    shape = replace(
        spec,
        num_heads=heads.stop - heads.start,
        num_kv_heads=kv_heads.stop - kv_heads.start,
        sinks=None if spec.sinks is None else spec.sinks[heads],
    )
    return shape, heads


def _runs(spec: LayerSpec, streaming: Collection[int]) -> list[HeadRun]:
    runs = []
    for streams, members in groupby(range(spec.num_kv_heads), lambda head: head in streaming):
        first, *_ = found = list(members)
        kv_heads = slice(first, first + len(found))
        shape, heads = of_heads(spec, kv_heads)
        runs.append(HeadRun(shape, kv_heads, heads, streams, len(found) == spec.num_kv_heads))
    return runs
