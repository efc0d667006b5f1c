"""Shapes of the answers, for the OpenAPI document."""

from typing import Literal

from pydantic import BaseModel, Field

FinishReason = Literal["stop", "length"]


class PromptTokensDetails(BaseModel):
    """Where the prompt's tokens came from."""

    cached_tokens: int


class PrefillReport(BaseModel):
    """What prefill selection did: how much each token of the prompt read of what stands before it."""

    method: str = Field(description="The prefill method that served the request.")
    tokens: int = Field(0, description="Prompt tokens that it computed, over all choices.")
    density: float = Field(1.0, description="The share of their keys that these read, 0 to 1.")


class SelectionReport(BaseModel):
    """What selecting did: how much of the KV each token read."""

    method: str = Field(description="The decode method that served the request.")
    steps: int = Field(0, description="Tokens that were decoded by selecting, over all choices.")
    tokens_per_step: float = Field(0.0, description="KV tokens that a layer read for each, on average.")
    kv_read_share: float = Field(1.0, description="Their share of all KV tokens of the context, 0 to 1.")
    refreshes: int = Field(0, description="Lists made anew; 0 where every step makes one.")
    prefill: PrefillReport | None = Field(None, description="There unless the prompt is left at dense.")
    full_layers: list[int] | None = Field(
        None, description="With a router: the layers that read as the methods say; others read nearby."
    )


class UsageReport(BaseModel):
    """Tokens of a request."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails
    headway: SelectionReport | None = Field(
        None, description="There unless server and request leave everything at dense."
    )


class TokenLogprob(BaseModel):
    """A token, its UTF-8 bytes and its log-probability."""

    token: str
    bytes: list[int]
    logprob: float


class ChosenTokenLogprob(TokenLogprob):
    """A generated token and its best alternatives."""

    top_logprobs: list[TokenLogprob]


class ChatLogprobs(BaseModel):
    """Log-probabilities of a chat choice."""

    content: list[ChosenTokenLogprob]
    refusal: None


class AssistantMessage(BaseModel):
    """What the model said."""

    role: Literal["assistant"]
    content: str
    refusal: None


class ChatCompletionChoice(BaseModel):
    """One of `n` answers."""

    index: int
    message: AssistantMessage
    logprobs: ChatLogprobs | None
    finish_reason: FinishReason


class ChatCompletion(BaseModel):
    """Answer of POST /v1/chat/completions."""

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[ChatCompletionChoice]
    usage: UsageReport


class CompletionLogprobs(BaseModel):
    """Log-probabilities of a text completion, one entry a token."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]


class CompletionChoiceShape(BaseModel):
    """One continuation."""

    index: int
    text: str
    logprobs: CompletionLogprobs | None
    finish_reason: FinishReason


class Completion(BaseModel):
    """Answer of POST /v1/completions."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    choices: list[CompletionChoiceShape]
    usage: UsageReport


class ModelCard(BaseModel):
    """The served model."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "headway"
    max_model_len: int


class ModelList(BaseModel):
    """Answer of GET /v1/models."""

    object: Literal["list"] = "list"
    data: list[ModelCard]


class Tokenized(BaseModel):
    """Answer of POST /tokenize."""

    tokens: list[int]
    count: int
    max_model_len: int


class Detokenized(BaseModel):
    """Answer of POST /detokenize."""

    prompt: str


class Status(BaseModel):
    """Answer of GET /health and GET /ready."""

    status: Literal["ok"] = "ok"
