"""The section `recipe` of the configuration: what the layers read, and what requests may choose."""

from typing import Annotated, Self

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


class RecipeConfig(Section):
    """How the model is served: what its layers read."""

    prefill: AnyPrefill = Field(PREFILL.defaults("dense"), description="Method and settings of prefill.")
    decode: AnyDecode = Field(DECODE.defaults("dense"), description="Method and settings of decode steps.")
    heads: HeadsConfig | None = Field(
        None, description="Routing of heads; default: all read as the methods say."
    )
    requests: RequestsConfig = RequestsConfig()

    @model_validator(mode="after")
    def _serve_together(self) -> Self:
        reason = why_not(DECODE.make(self.decode), PREFILL.make(self.prefill))
        if reason is not None:
            raise WrongKeys(reason)
        return self
