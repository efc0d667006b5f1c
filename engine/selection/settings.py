"""What all decode methods can be told; each method's own settings stand beside it."""

from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator

MOST = 2**30
"""Above every context, and far enough from the end of int32 for sums of lengths on the device."""

Count = Annotated[int, Field(ge=0, le=MOST)]
Positive = Annotated[int, Field(ge=1, le=MOST)]
Share = Annotated[float, Field(gt=0, le=1)]


class ServersOwn:
    """Marks a setting that shapes the computation, so that no request can make it absurd."""


class MethodSettings(BaseModel):
    """Settings of every method."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, validate_default=True)

    method: str


class DecodeSettings(MethodSettings):
    """Settings of every decode method."""

    dense_below: Count = Field(4096, description="Contexts of up to so many tokens are read whole.")
    dense_layers: Count = Field(0, description="The first layers, which always read everything.")
    sink_size: Count = Field(64, description="First tokens, always read.")
    window_size: Positive = Field(256, description="Latest tokens, always read.")


class BudgetSettings(DecodeSettings):
    """Settings of every method that ranks tokens or pages."""

    budget: Positive = Field(2048, description="Tokens a KV head reads in a step, sinks and window included.")
    fraction: Share | None = Field(None, description="Budget as a share of the context, at least `budget`.")
    mass: Share | None = Field(
        None, description="Stop earlier once this share of the ranked units' softmax mass is covered."
    )

    @field_validator("budget")
    @classmethod
    def _holds_what_is_always_read(cls, value: int, others: ValidationInfo) -> int:
        always = others.data.get("sink_size", 0) + others.data.get("window_size", 0)
        if value < always:
            raise ValueError(f"must hold the {always} tokens of sink_size and window_size")
        return value


def of_requests(schema: type[MethodSettings]) -> tuple[str, ...]:
    """The settings that a request may choose: numbers, switches and words of a fixed list.

    Never free text, paths or lists: what names a file, or describes the model, is the server's to say.
    """
    return tuple(
        name
        for name, field in schema.model_fields.items()
        if _is_plain(field.annotation) and ServersOwn not in field.metadata
    )


def _is_plain(annotation: Any) -> bool:
    if get_origin(annotation) in (Union, UnionType):
        return all(_is_plain(part) for part in get_args(annotation))
    if get_origin(annotation) is Annotated:
        return _is_plain(get_args(annotation)[0])
    return get_origin(annotation) is Literal or annotation in (int, float, bool, type(None))
