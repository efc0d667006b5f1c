"""What clients may send: OpenAI's fields and vLLM's common additions, each with its bounds.

`null` means absent. Unknown fields are ignored; known fields that Headway cannot honour are refused.
"""

from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, PlainValidator, WithJsonSchema, model_validator

from headway.server.prompts import (
    PROMPT_SCHEMA,
    PromptInput,
    check_logit_bias,
    check_prompt,
    check_token_ids,
)

MAX_MESSAGES = 10_000


def _refuse(value: Any) -> Any:
    if value not in (None, [], {}, "none", "auto"):
        raise ValueError("this server does not support it; leave it out")
    return value


def _refuse_format(value: Any) -> Any:
    if value is not None and (not isinstance(value, dict) or value.get("type") != "text"):
        raise ValueError("only {'type': 'text'} is supported")
    return value


TokenIds = Annotated[
    list[int],
    PlainValidator(check_token_ids),
    WithJsonSchema({"type": "array", "items": {"type": "integer", "minimum": 0, "maximum": 2**31 - 1}}),
]
LogitBias = Annotated[
    dict[int, float],
    PlainValidator(check_logit_bias),
    WithJsonSchema(
        {
            "type": "object",
            "propertyNames": {"pattern": "^[0-9]{1,9}$"},
            "additionalProperties": {"type": "number", "minimum": -100, "maximum": 100},
        }
    ),
]
Prompt = Annotated[PromptInput, PlainValidator(check_prompt), WithJsonSchema(PROMPT_SCHEMA)]
StopString = Annotated[str, Field(min_length=1, max_length=1024)]
Unsupported = Annotated[
    Any,
    PlainValidator(_refuse),
    WithJsonSchema({"enum": [None, [], {}, "none", "auto"], "description": "Not supported yet."}),
]
TextFormat = Annotated[
    Any,
    PlainValidator(_refuse_format),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "object", "properties": {"type": {"const": "text"}}, "required": ["type"]},
                {"type": "null"},
            ]
        }
    ),
]
ModelName = Annotated[str, Field(max_length=512)]


class _Strict(BaseModel):
    # Strict: a bool is no number and "5" is no 5.
    model_config = ConfigDict(strict=True, allow_inf_nan=False, frozen=True)


class StreamOptions(_Strict):
    """What a stream carries beside the text."""

    include_usage: bool | None = Field(None, description="A last chunk with `usage` and no choices.")
    continuous_usage_stats: bool | None = Field(None, description="`usage` in every chunk.")
    include_progress: bool | None = Field(
        None,
        description="During prefill, chunks without choices that carry `headway.prefill`.",
    )


class TemplateFields(_Strict):
    """How `messages` become a prompt."""

    add_generation_prompt: bool | None = Field(
        None, description="Begin the assistant's answer; default: unless the last message goes on."
    )
    continue_final_message: bool | None = Field(None, description="Continue the last message's text.")
    chat_template_kwargs: dict[str, Any] | None = Field(None, description="Variables of the template.")


class SamplingFields(_Strict):
    """How tokens are drawn, in both completion routes."""

    model: ModelName | None = None
    n: Annotated[int, Field(ge=1, le=1024)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    temperature: Annotated[float, Field(ge=0, le=100)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=-1, lt=2**31)] | None = Field(None, description="-1 or 0: off.")
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    repetition_penalty: Annotated[float, Field(ge=0.01, le=100)] | None = None
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    logit_bias: LogitBias | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    max_tokens: Annotated[int, Field(ge=1, lt=2**31)] | None = None
    min_tokens: Annotated[int, Field(ge=0, lt=2**31)] | None = None
    stop: StopString | Annotated[list[StopString], Field(fail_fast=True)] | None = None
    stop_token_ids: TokenIds | None = None
    ignore_eos: bool | None = None
    skip_special_tokens: bool | None = None
    include_stop_str_in_output: bool | None = None
    priority: Annotated[int, Field(ge=-(2**31), lt=2**31)] | None = Field(
        None, description="Lower runs earlier."
    )
    cache_salt: Annotated[str, Field(min_length=1, max_length=256)] | None = Field(
        None, description="Separates this request's prefix cache from others'."
    )
    response_format: TextFormat = None
    headway: dict[str, Any] | None = Field(None, description="Headway's own options.")


class CompletionRequest(SamplingFields):
    """Body of POST /v1/completions."""

    prompt: Prompt
    best_of: Annotated[int, Field(ge=1, le=1024)] | None = Field(None, description="Must equal `n`.")
    echo: bool | None = None
    logprobs: Annotated[int, Field(ge=0, le=1024)] | None = None
    add_special_tokens: bool | None = None
    suffix: Unsupported = None


class ContentPart(_Strict):
    """A piece of a message; Headway reads text only."""

    type: Literal["text"]
    text: str


class Message(BaseModel):
    """One turn of a conversation; further keys reach the model's chat template."""

    model_config = ConfigDict(strict=True, frozen=True, extra="allow")

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | Annotated[list[ContentPart], Field(fail_fast=True)] | None = None

    @model_validator(mode="after")
    def _has_content(self) -> Self:
        if self.content is None and self.role != "assistant":
            raise ValueError("a message needs content")
        return self


Messages = Annotated[list[Message], Field(min_length=1, max_length=MAX_MESSAGES, fail_fast=True)]


class ChatRequest(SamplingFields, TemplateFields):
    """Body of POST /v1/chat/completions."""

    messages: Messages
    max_completion_tokens: Annotated[int, Field(ge=1, lt=2**31)] | None = Field(
        None, description="Wins over `max_tokens`."
    )
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=1024)] | None = Field(None, description="Needs `logprobs`.")
    chat_template: Unsupported = None
    tools: Unsupported = None
    tool_choice: Unsupported = None
    functions: Unsupported = None
    function_call: Unsupported = None


class TokenizeRequest(TemplateFields):
    """Body of POST /tokenize: a prompt, or messages."""

    model: ModelName | None = None
    prompt: str | None = None
    messages: Messages | None = None
    add_special_tokens: bool | None = Field(None, description="For `prompt`; default true.")


class DetokenizeRequest(_Strict):
    """Body of POST /detokenize."""

    model: ModelName | None = None
    tokens: TokenIds
