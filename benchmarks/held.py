"""How much KV a request holds where heads that stream drop theirs, by the engine's own page rules."""

from headway.engine.cache import page_bytes
from headway.engine.cache_layout import cache_layout
from headway.engine.loaded import LoadedModel
from headway.engine.messages import SamplingParams, Submit
from headway.engine.methods import decode, prefill
from headway.engine.request import Sequence
from headway.engine.selection.head_route import HeadRoutes
from headway.engine.streaming_pages import StreamingPages


def kv_bytes_ratio(
    loaded: LoadedModel,
    routes: HeadRoutes | None,
    methods: tuple[prefill.AnyMethod | None, decode.AnyMethod | None],
    context: int,
    page_size: int,
    chunk: int,
) -> float:
    """Bytes of all KV of a prompt over what is held of it once it is read and the first token follows."""
    if routes is None or routes.question_reads_all:  # such a question needs all KV
        return 1.0
    layout = cache_layout(routes, loaded.specs, loaded.device, drop=True)
    submit = Submit(request_id="a", prompt=[0] * context, sampling=SamplingParams(max_tokens=2))
    sequence = Sequence(submit, list(submit.prompt), 2, context + 2)
    sequence.prefill, sequence.decode = methods
    pages = StreamingPages(-(-(context + 2) // page_size), page_size, routes, chunk)
    ends = [*range(chunk, context, chunk), context, context + 1]
    for sequence.computed in ends:
        pages.reach(sequence, sequence.computed)
        pages.advance(sequence)
    everything = -(-ends[-1] // page_size)
    held = everything * page_bytes(layout.specs, page_size, loaded.dtype)
    held += len(pages.held(sequence)) * page_bytes(layout.streaming, page_size, loaded.dtype)
    return everything * page_bytes(loaded.specs, page_size, loaded.dtype) / held
