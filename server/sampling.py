"""From a request's fields to the engine's sampling parameters and to what happens to the text."""

from dataclasses import dataclass

from headway.engine.config import LimitsConfig
from headway.engine.errors import RequestError
from headway.engine.messages import SamplingParams
from headway.server.schema import SamplingFields

MAX_STOP_TOKENS = 256

_SAME_NAME = (
    "temperature",
    "top_p",
    "min_p",
    "repetition_penalty",
    "presence_penalty",
    "frequency_penalty",
    "logit_bias",
    "seed",
    "min_tokens",
    "ignore_eos",
)


@dataclass(frozen=True, slots=True)
class TextOptions:
    """How generated tokens become text."""

    stop: tuple[str, ...] = ()
    include_stop: bool = False
    skip_special_tokens: bool = True
    min_tokens: int = 0


def sampling_params(
    body: SamplingFields,
    limits: LimitsConfig,
    *,
    max_tokens: int | None,
    logprobs: int | None,
    prompt_logprobs: int | None = None,
    logprobs_field: str = "logprobs",
) -> SamplingParams:
    """The engine's parameters; defaults are the engine's. `logprobs_field`: what the request calls it.

    Raises:
        RequestError: a field exceeds the configured limits.
    """
    _limit("n", body.n or 1, limits.max_n)
    _limit(logprobs_field, logprobs or 0, limits.max_logprobs)
    _limit("stop_token_ids", len(body.stop_token_ids or ()), MAX_STOP_TOKENS)
    _limit("logit_bias", len(body.logit_bias or ()), limits.max_logit_bias)
    given = {name: value for name in _SAME_NAME if (value := getattr(body, name)) is not None}
    return SamplingParams(
        **given,
        max_tokens=max_tokens,
        top_k=max(0, body.top_k or 0),
        stop_token_ids=tuple(body.stop_token_ids or ()),
        logprobs=logprobs,
        prompt_logprobs=prompt_logprobs,
    )


def text_options(body: SamplingFields, limits: LimitsConfig) -> TextOptions:
    """What to do with the text.

    Raises:
        RequestError: too many stop strings.
    """
    stop = [body.stop] if isinstance(body.stop, str) else body.stop or []
    _limit("stop", len(stop), limits.max_stop_strings)
    return TextOptions(
        stop=tuple(stop),
        include_stop=bool(body.include_stop_str_in_output),
        skip_special_tokens=body.skip_special_tokens is not False,
        min_tokens=body.min_tokens or 0,
    )


def _limit(field: str, value: int, highest: int) -> None:
    if value > highest:
        raise RequestError(f"{field}: at most {highest} here, not {value}", field)
