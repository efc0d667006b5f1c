"""The section `recipe` of the configuration: what the layers read, and what requests may choose."""

from typing import Annotated, Self

from pydantic import BeforeValidator, Field, SerializeAsAny, ValidationInfo, field_validator, model_validator

from headway.engine.config_section import Positive, Section, WrongKeys, nearest
from headway.engine.methods.combination import why_not
from headway.engine.methods.kind import DECODE, PREFILL
from headway.engine.selection.prefill_settings import PrefillSettings
from headway.engine.selection.settings import DecodeSettings

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


class RecipeConfig(Section):
    """How the model is served: what its layers read."""

    prefill: AnyPrefill = Field(PREFILL.defaults("dense"), description="Method and settings of prefill.")
    decode: AnyDecode = Field(DECODE.defaults("dense"), description="Method and settings of decode steps.")
    requests: RequestsConfig = RequestsConfig()

    @model_validator(mode="after")
    def _serve_together(self) -> Self:
        reason = why_not(DECODE.make(self.decode), PREFILL.make(self.prefill))
        if reason is not None:
            raise WrongKeys(reason)
        return self
