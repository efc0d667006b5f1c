"""What all prefill methods can be told; each method's own settings stand beside it."""

from typing import Annotated, Any

from pydantic import Field

from headway.engine.selection.settings import Count, MethodSettings, Positive, ServersOwn


def gate(tokens: int) -> Any:
    """`dense_below` of a method: about where it begins to pay, measured on needle on two CPU cores."""
    return Field(tokens, description="A prompt's first tokens, which read all before them.")


class PrefillSettings(MethodSettings):
    """Settings of every prefill method."""

    dense_below: Count = gate(8192)
    dense_tail: Count = Field(64, description="A prompt's last tokens, which read everything.")
    dense_layers: Count = Field(0, description="The first layers, which always read everything.")
    sink_size: Count = Field(128, description="First tokens, always read.")
    window_size: Count = Field(256, description="Tokens before a tile of queries, always read.")
    tile: Annotated[Positive, ServersOwn] = Field(
        128, description="Queries that read the same keys; not a request's to choose."
    )


class ChunkSettings(PrefillSettings):
    """Settings of methods that choose for a whole chunk at once."""

    chunk: Annotated[Positive, ServersOwn]
