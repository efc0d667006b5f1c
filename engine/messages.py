"""What passes between a client and the engine: plain msgspec structs, never pickle.

A client sends `Submit`, `Abort`, `Shutdown`; the engine answers with `Ready` once, then events of requests
and a `Heartbeat` at least every second while it is alive.
"""

from typing import Literal

import msgspec

FinishReason = Literal["stop", "length", "abort"]
Choice = dict[str, str | int | float | bool | None]


class SamplingParams(msgspec.Struct, frozen=True, kw_only=True):
    """How tokens are drawn. Values are within bounds already: `headway.engine.request.check` sees to it.

    `temperature` 0 is greedy. `top_k` 0 and `top_p` 1 are off. `logprobs` is the number of alternatives to
    report for each generated token (None: no log-probabilities; 0: the chosen token's only);
    `prompt_logprobs` the same for each prompt token but the first. `seed` makes the draw reproducible
    whatever else is in the batch.
    """

    max_tokens: int | None = None
    min_tokens: int = 0
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: dict[int, float] = {}
    seed: int | None = None
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    logprobs: int | None = None
    prompt_logprobs: int | None = None


class Submit(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """One sequence to generate.

    `prompt` holds token ids. `cache_salt` separates tenants in the prefix cache. A lower `priority` runs
    earlier. `progress` asks for `Progress` events during prefill. `decode` and `prefill` each name a method
    and its settings where they shall differ from the engine's own; see `headway.engine.offer`.
    """

    request_id: str
    prompt: list[int]
    sampling: SamplingParams
    priority: int = 0
    cache_salt: str = ""
    progress: bool = False
    decode: Choice | None = None
    prefill: Choice | None = None


class Abort(msgspec.Struct, frozen=True, tag=True):
    """Stop this request within one chunk; its last event follows. Unknown ids are ignored."""

    request_id: str


class Shutdown(msgspec.Struct, frozen=True, tag=True):
    """End the engine after the current step."""


class ModelInfo(msgspec.Struct, frozen=True, kw_only=True):
    """What a client must know of the loaded model."""

    name: str
    max_context: int
    vocab_size: int
    eos_token_ids: tuple[int, ...]
    dtype: str
    device: str
    num_pages: int
    page_size: int
    plan: str


class Ready(msgspec.Struct, frozen=True, tag=True):
    """The model is loaded and the engine takes requests."""

    info: ModelInfo


class StartFailed(msgspec.Struct, frozen=True, tag=True):
    """The engine could not start; `kind` is the class name of the error (ConfigError, ModelRefused …)."""

    kind: str
    message: str


class Logprob(msgspec.Struct, frozen=True, array_like=True):
    """The log-probability of a token and its alternatives, best first, as (token id, logprob)."""

    logprob: float
    top: list[tuple[int, float]]


class SelectionUsage(msgspec.Struct, frozen=True, kw_only=True):
    """What decode selection did for one request.

    `steps` decode steps selected; in each, an attention layer read `tokens_per_step` tokens on average, the
    share `kv_read_share` of what the context held. `refreshes`: lists made anew, summed over layers; 0 for
    methods that make one in every step.
    """

    method: str
    steps: int = 0
    tokens_per_step: float = 0.0
    kv_read_share: float = 1.0
    refreshes: int = 0

    @property
    def attended(self) -> float:
        """Tokens that a layer read in all steps, on average."""
        return self.tokens_per_step * self.steps

    @property
    def context(self) -> float:
        """Tokens that dense attention would have read for them."""
        return self.attended / self.kv_read_share


class PrefillUsage(msgspec.Struct, frozen=True, kw_only=True):
    """What prefill selection did for one request.

    `tokens` of its prompt were computed by `method`: not those from the prefix cache, nor chunks that are
    dense. For these, an attention layer that selects read the share `density` of the keys that stand at or
    before each token.
    """

    method: str
    tokens: int = 0
    density: float = 1.0


class Tokens(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """New tokens of one request.

    The first event of a request carries `cached_tokens` (prompt tokens found in the prefix cache) and, if
    asked for, `prompt_logprobs` (one entry per prompt token, the first None). `finish_reason` marks the last
    event, which also carries `selection`, `prefill` and, where a router serves, `full_layers`: those that it
    let read everything; that of an abort has no tokens. A stop token is the last of `token_ids`, and no part
    of the text.
    """

    request_id: str
    token_ids: list[int]
    logprobs: list[Logprob] | None = None
    prompt_logprobs: list[Logprob | None] | None = None
    cached_tokens: int = 0
    finish_reason: FinishReason | None = None
    stop_token: int | None = None
    selection: SelectionUsage | None = None
    prefill: PrefillUsage | None = None
    full_layers: tuple[int, ...] | None = None


class Progress(msgspec.Struct, frozen=True, tag=True):
    """Prefill progress: `done` of `total` prompt tokens, `cached` of them from the prefix cache."""

    request_id: str
    done: int
    total: int
    cached: int


class Failed(msgspec.Struct, frozen=True, tag=True):
    """This request ends with an error: `kind` is the class name in `headway.engine.errors`."""

    request_id: str
    kind: str
    message: str
    field: str | None = None
    retry_after: int = 0


class Stats(msgspec.Struct, frozen=True, kw_only=True):
    """Counters since start (`*_total`) and gauges of this moment.

    `pages_total` is free + cached + used, and so for `streaming_pages_*`, the pages of heads that stream; 0
    where these have none of their own.
    """

    running: int = 0
    waiting: int = 0
    waiting_tokens: int = 0
    pages_total: int = 0
    pages_free: int = 0
    pages_cached: int = 0
    pages_used: int = 0
    streaming_pages_total: int = 0
    streaming_pages_free: int = 0
    streaming_pages_cached: int = 0
    streaming_pages_used: int = 0
    steps_total: int = 0
    prompt_tokens_total: int = 0
    cached_tokens_total: int = 0
    generated_tokens_total: int = 0
    preemptions_total: int = 0
    failures_total: int = 0
    last_step_seconds: float = 0.0


class Heartbeat(msgspec.Struct, frozen=True, tag=True):
    """The engine is alive; sent at least once a second between steps."""

    stats: Stats


ToEngine = Submit | Abort | Shutdown
FromEngine = Ready | StartFailed | Tokens | Progress | Failed | Heartbeat
RequestEvent = Tokens | Progress | Failed
