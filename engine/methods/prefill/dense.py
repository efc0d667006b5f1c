"""dense: every token reads everything before it."""

from typing import Literal

from headway.engine.methods.prefill.base import PrefillMethod
from headway.engine.selection.prefill_settings import PrefillSettings


class Settings(PrefillSettings):
    """Nothing is selected; the other settings have no effect."""

    method: Literal["dense"] = "dense"


class Method(PrefillMethod[Settings]):
    """Never asked to select: a dense prompt runs in the batch's dense part."""
