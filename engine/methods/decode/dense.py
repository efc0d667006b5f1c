"""dense: every token is read."""

from typing import Literal

from headway.engine.methods.decode.base import DecodeMethod
from headway.engine.selection.settings import DecodeSettings


class Settings(DecodeSettings):
    """Nothing is selected; the other settings tell only where other heads of a layer stream."""

    method: Literal["dense"] = "dense"


class Method(DecodeMethod[Settings]):
    """Never asked to select: a dense sequence runs in the batch's dense part."""
