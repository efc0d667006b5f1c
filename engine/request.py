"""Sequence: one request while the engine works on it."""

import math
import sys
from dataclasses import dataclass, field

from headway.engine.errors import ContextTooLong, RequestError
from headway.engine.messages import FinishReason, Logprob, ModelInfo, PrefillUsage, Submit
from headway.engine.methods import prefill as prefill_methods
from headway.engine.methods.decode import AnyMethod
from headway.engine.selection.prompt_reads import PromptReads
from headway.engine.selection.state import SelectionState


@dataclass(slots=True, eq=False)
class Sequence:
    """One prompt and what has been generated for it.

    Attributes:
        tokens: prompt, then generated token ids.
        computed: tokens whose KV is in the cache; a preempted sequence starts again at 0 (or at a cache hit).
        pages: physical pages that hold those tokens, in order.
        streaming_pages: the same for heads that stream, where these have pages of their own.
        room: physical pages side by side that the sequence began in; those that are free are kept for it.
        cached: prompt tokens that the first admission found in the prefix cache; -1 before admission.
        rope_length: length that length-dependent RoPE is fixed at, chosen at admission.
        arrival: when it came, in seconds: a prompt gains on shorter ones by waiting.
        digests: what the prefix cache knows the sequence's full pages by, in order.
        prompt_logprobs: the prompt's scores so far, if asked for; the first token has none.
        decode: what selects for its decode steps; None: they are dense.
        selection: what that method remembers, from the first step on; gone with the pages.
        prefill: what selects for the prompt; None: it is dense, as are prompts no longer than the method's
            `dense_below`, and those whose log-probabilities are asked for.
        granule: prompt tokens that are computed in one chunk, and shared, together or not at all.
        prompt_reads: what `prefill` has read so far.
        full_layers: the layers that read as `prefill` and `decode` say, where a router chose them: the others
            read sinks and window only. None: no router serves.
    """

    submit: Submit
    tokens: list[int]
    max_tokens: int
    rope_length: int
    arrival: float = 0.0
    computed: int = 0
    pages: list[int] = field(default_factory=list)
    streaming_pages: list[int] = field(default_factory=list)
    room: range = range(0)
    cached: int = -1
    finish_reason: FinishReason | None = None
    digests: list[bytes] = field(default_factory=list)
    prompt_logprobs: list[Logprob | None] = field(default_factory=lambda: [None])
    decode: AnyMethod | None = None
    selection: SelectionState | None = None
    prefill: prefill_methods.AnyMethod | None = None
    granule: int = 1
    prompt_reads: PromptReads = field(default_factory=PromptReads)
    full_layers: tuple[int, ...] | None = None

    @classmethod
    def from_submit(
        cls,
        submit: Submit,
        info: ModelInfo,
        decode: AnyMethod | None = None,
        prefill: prefill_methods.AnyMethod | None = None,
        arrival: float = 0.0,
    ) -> "Sequence":
        """Check a request against the model's limits and make its sequence.

        Raises:
            RequestError: a field is out of bounds.
            ContextTooLong: prompt and answer do not fit the context.
        """
        check(submit, info)
        room = info.max_context - len(submit.prompt)
        max_tokens = room if submit.sampling.max_tokens is None else submit.sampling.max_tokens
        length = len(submit.prompt) + max_tokens
        sequence = cls(submit, list(submit.prompt), max_tokens, length, arrival, decode=decode)
        if prefill is not None and _selects(prefill, submit):
            sequence.prefill, sequence.granule = prefill, granule_of(prefill, info.page_size)
        return sequence

    @property
    def request_id(self) -> str:
        """The client's id of this request."""
        return self.submit.request_id

    @property
    def num_prompt(self) -> int:
        """Prompt tokens."""
        return len(self.submit.prompt)

    @property
    def num_generated(self) -> int:
        """Generated tokens."""
        return len(self.tokens) - len(self.submit.prompt)

    @property
    def unscored(self) -> int:
        """Prompt tokens whose asked-for log-probability is still missing."""
        if self.submit.sampling.prompt_logprobs is None:
            return 0
        return self.num_prompt - len(self.prompt_logprobs)

    @property
    def exact(self) -> int:
        """Leading tokens that are computed densely; those behind them are decode steps that select.

        After a preemption they are decode steps again, one by one, so that the same tokens come out.
        """
        if self.decode is None:
            return sys.maxsize
        dense_below: int = self.decode.settings.dense_below
        return max(self.num_prompt, dense_below)

    @property
    def shareable(self) -> int:
        """Leading tokens whose pages others may share, as far as their prompts are equal."""
        if self.prefill is None:
            return self.exact
        dense_tail: int = self.prefill.settings.dense_tail
        alike = max(0, self.num_prompt - dense_tail)
        return alike - alike % self.granule

    @property
    def streams_from(self) -> int:
        """Leading tokens that heads which stream read as a whole, too, because all heads do."""
        if self.exact > self.num_prompt or self.prefill is None:
            return self.exact
        dense_below: int = self.prefill.settings.dense_below
        return dense_below

    @property
    def observed_from(self) -> int:
        """First prompt token whose query the decode method must see; no token at all: a huge number."""
        if self.decode is None or self.num_prompt + self.max_tokens <= self.decode.settings.dense_below:
            return sys.maxsize
        if self.decode.sees_all:
            return 0
        return max(0, self.num_prompt - self.decode.observes) if self.decode.observes else sys.maxsize

    @property
    def remaining(self) -> int:
        """Tokens still to compute before the next one can be sampled."""
        return len(self.tokens) - self.computed

    def prefill_usage(self) -> PrefillUsage | None:
        """What the prefill method did; None: the prompt was dense. The host waits for the device."""
        return None if self.prefill is None else self.prompt_reads.usage(self.prefill.settings.method)

    def chunk_length(self, start: int, most: int) -> int:
        """Tokens of the longest chunk from `start` on of at most `most`; 0: not even a granule fits."""
        if start >= self.exact:
            return min(1, most)
        if self.prefill is None or start >= self.num_prompt:
            return min(most, self.exact - start)
        stop = self.num_prompt if self.prefill.row_local else min(self.num_prompt, start + self.granule)
        end = min(start + most, stop)
        return end - start if end == self.num_prompt else max(0, end - end % self.granule - start)


def granule_of(method: prefill_methods.AnyMethod, page_size: int) -> int:
    """Prompt tokens that are computed, and shared, together under a method: whole granules in whole pages."""
    return math.lcm(method.granule, page_size)


def _selects(method: prefill_methods.AnyMethod, submit: Submit) -> bool:
    """Whether any of the prompt is left to the method; scores of a prompt are those of the whole model."""
    dense_below: int = method.settings.dense_below
    return len(submit.prompt) > dense_below and submit.sampling.prompt_logprobs is None


def check(submit: Submit, info: ModelInfo) -> None:
    """Refuse what would break the engine, whoever sent it.

    Raises:
        RequestError: names the field and what is allowed.
    """
    prompt, params = submit.prompt, submit.sampling
    if not prompt:
        raise RequestError("the prompt must hold at least one token", "prompt")
    if min(prompt) < 0 or max(prompt) >= info.vocab_size:
        raise RequestError(f"token ids must lie in 0…{info.vocab_size - 1}", "prompt")
    if len(prompt) >= info.max_context:
        raise ContextTooLong(
            f"the prompt has {len(prompt)} tokens; at most {info.max_context - 1} fit "
            f"(the context of {info.max_context} includes the answer)",
            "prompt",
        )
    room = info.max_context - len(prompt)
    if params.max_tokens is not None and not 1 <= params.max_tokens <= room:
        raise ContextTooLong(
            f"max_tokens is {params.max_tokens}; after {len(prompt)} prompt tokens it must lie in 1…{room}",
            "max_tokens",
        )
    for name, low, high in (
        ("temperature", 0.0, 100.0),
        ("top_p", 0.0, 1.0),
        ("min_p", 0.0, 1.0),
        ("repetition_penalty", 0.01, 100.0),
        ("presence_penalty", -2.0, 2.0),
        ("frequency_penalty", -2.0, 2.0),
    ):
        value = getattr(params, name)
        if not (math.isfinite(value) and low <= value <= high):
            raise RequestError(f"{name} must lie in {low:g}…{high:g}, not {value}", name)
    if params.top_p == 0.0:
        raise RequestError("top_p must be above 0", "top_p")
    if params.top_k < 0:
        raise RequestError("top_k must be 0 (off) or more", "top_k")
    if params.min_tokens < 0:
        raise RequestError("min_tokens must be 0 or more", "min_tokens")
    for name, ids in (("logit_bias", params.logit_bias), ("stop_token_ids", params.stop_token_ids)):
        if any(not 0 <= token < info.vocab_size for token in ids):
            raise RequestError(f"{name} holds a token id outside 0…{info.vocab_size - 1}", name)
    if any(not -100.0 <= bias <= 100.0 for bias in params.logit_bias.values()):
        raise RequestError("logit_bias values must lie in -100…100", "logit_bias")
    for name, count in (("logprobs", params.logprobs), ("prompt_logprobs", params.prompt_logprobs)):
        if count is not None and not 0 <= count <= info.vocab_size:
            raise RequestError(f"{name} must lie in 0…{info.vocab_size}", name)
