"""What all prefill methods can be told; each method's own settings stand beside it."""

from pydantic import BaseModel, ConfigDict, Field

from headway.engine.selection.settings import Count, Positive


class PrefillSettings(BaseModel):
    """Settings of every prefill method."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, validate_default=True)

    method: str
    dense_below: Count = Field(8192, description="A prompt's first tokens, which read all before them.")
    dense_tail: Count = Field(64, description="A prompt's last tokens, which read everything.")
    dense_layers: Count = Field(0, description="The first layers, which always read everything.")
    sink_size: Count = Field(128, description="First tokens, always read.")
    window_size: Count = Field(256, description="Tokens before a tile of queries, always read.")
    tile: Positive = Field(128, description="Queries that read the same keys.")
