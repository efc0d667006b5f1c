"""The section `recipe` of the configuration: what the layers read, and what requests may choose."""

from typing import Annotated, Literal, Self

from pydantic import BeforeValidator, Field, SerializeAsAny, ValidationInfo, field_validator, model_validator

from headway.engine.config_section import Positive, Section, WrongKeys, nearest
from headway.engine.methods.combination import why_not
from headway.engine.methods.kind import DECODE, PREFILL
from headway.engine.selection.prefill_settings import PrefillSettings
from headway.engine.selection.settings import Count, DecodeSettings
from headway.engine.selection.settings import Positive as PositiveCount

AnyDecode = Annotated[SerializeAsAny[DecodeSettings], BeforeValidator(DECODE.parse)]
AnyPrefill = Annotated[SerializeAsAny[PrefillSettings], BeforeValidator(PREFILL.parse)]


class RequestsConfig(Section):
    """What a request may choose for itself with `extra_body={"headway": {"decode": {…}, "prefill": {…}}}`."""

    methods: tuple[str, ...] | None = Field(
        None, description="Decode methods a request may name beside `dense` and the server's; default: none."
    )
    prefill_methods: tuple[str, ...] | None = Field(None, description="The same for prefill methods.")
    max_budget: Positive = Field(16_384, description="Largest budget a request may ask for, in tokens.")
    max_fraction: Annotated[float, Field(gt=0, le=1)] = Field(
        0.25, description="Largest `fraction`, a budget as a share of the context, a request may ask for."
    )

    @field_validator(DECODE.offered, PREFILL.offered)
    @classmethod
    def _are_known(cls, value: tuple[str, ...] | None, field: ValidationInfo) -> tuple[str, ...] | None:
        valid = DECODE.names() if field.field_name == DECODE.offered else PREFILL.names()
        for name in value or ():
            if name not in valid:
                raise ValueError(f"{name!r} is unknown; did you mean {nearest(name, valid)}")
        return value


class HeadsConfig(Section):
    """Which KV heads read sinks and window only; the others read as `prefill` and `decode` say."""

    profile: str = Field(description="A profile that scores the heads, made by `headway profile`.")
    sparsity: Annotated[float, Field(ge=0, le=1)] = Field(
        0.5, description="Share of the KV heads that stream: those of the lowest scores."
    )
    sink_size: Count = Field(64, description="First tokens, which they always read.")
    window_size: PositiveCount = Field(
        256, description="Latest tokens, which they always read; in prefill, those before a tile."
    )
    question: Literal["near", "all"] = Field(
        "near", description="What they read for a prompt's last `dense_tail` tokens: no more, or everything."
    )


class LayersConfig(Section):
    """A router that chooses, request by request, which layers read sinks and window only."""

    router: str = Field(description="A `router` profile, made by `headway profile`.")
    sink_size: Count = Field(64, description="First tokens, which sparse layers read.")
    window_size: PositiveCount = Field(
        256, description="Latest tokens, which sparse layers read; in prefill, those before a tile."
    )


class MemoryConfig(Section):
    """What of the KV is kept."""

    streaming_heads: Literal["keep", "drop"] = Field(
        "keep",
        description="KV of the heads that `heads` lets stream: `drop` keeps their sinks and window only.",
    )


class RecipeConfig(Section):
    """How the model is served: what its layers read."""

    prefill: AnyPrefill = Field(PREFILL.defaults("dense"), description="Method and settings of prefill.")
    decode: AnyDecode = Field(DECODE.defaults("dense"), description="Method and settings of decode steps.")
    heads: HeadsConfig | None = Field(
        None, description="Routing of heads; default: all read as the methods say."
    )
    layers: LayersConfig | None = Field(
        None, description="Routing of layers by request; default: all read as the methods say."
    )
    memory: MemoryConfig = MemoryConfig()
    requests: RequestsConfig = RequestsConfig()

    @model_validator(mode="after")
    def _serve_together(self) -> Self:
        reason = why_not(DECODE.make(self.decode), PREFILL.make(self.prefill))
        if reason is not None:
            raise WrongKeys(reason)
        return self

    @model_validator(mode="after")
    def _one_routing(self) -> Self:
        if self.heads is not None and self.layers is not None:
            raise WrongKeys(
                "layers: recipe.heads says already which heads stream, the same for every request; a router "
                "was trained with all heads of a full layer reading everything: leave out one of the two"
            )
        return self

    @model_validator(mode="after")
    def _some_stream(self) -> Self:
        if self.memory.streaming_heads == "keep":
            return self
        if self.heads is None:
            raise WrongKeys(
                "memory.streaming_heads: drop needs recipe.heads, which says what heads always stream"
            )
        if self.heads.question == "all":
            raise WrongKeys(
                "memory.streaming_heads: drop leaves heads that stream nothing that a question could read "
                "beyond sinks and window: use heads.question: near, or keep"
            )
        return self
