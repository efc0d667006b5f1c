"""What all decode methods can be told; each method's own settings stand beside it."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

Count = Annotated[int, Field(ge=0)]
Positive = Annotated[int, Field(ge=1)]
Share = Annotated[float, Field(gt=0, le=1)]


class DecodeSettings(BaseModel):
    """Settings of every decode method."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    method: str
    dense_below: Count = Field(4096, description="Contexts of fewer tokens are read whole.")
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
