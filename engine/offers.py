"""Offers: what a request may choose of both kinds of method, and what fits together."""

from collections.abc import Mapping
from typing import Any

from headway.engine.errors import RequestError
from headway.engine.methods import decode, prefill
from headway.engine.methods.combination import why_not
from headway.engine.methods.kind import DECODE, PREFILL
from headway.engine.offer import Offer
from headway.engine.recipe import RecipeConfig
from headway.engine.selection.prefill_settings import PrefillSettings
from headway.engine.selection.settings import DecodeSettings
from headway.engine.sidecars import Sidecar


class Offers:
    """What requests may choose, as far as the configuration alone says it.

    Attributes:
        heads: what heads stream, whatever a request chooses; None: none.
        layers: what routes layers, whatever a request chooses; None: nothing.
        sidecars: what is kept beside the pages for every method that is offered.
    """

    def __init__(self, config: RecipeConfig) -> None:
        requests = config.requests
        self.decode: Offer[DecodeSettings, decode.AnyMethod] = Offer(
            DECODE, config.decode, requests.methods or (), requests
        )
        self.prefill: Offer[PrefillSettings, prefill.AnyMethod] = Offer(
            PREFILL, config.prefill, requests.prefill_methods or (), requests
        )
        self.heads, self.layers = config.heads, config.layers
        self.sidecars: frozenset[Sidecar] = self.decode.sidecars | self.prefill.sidecars

    def settings(
        self, decode: Mapping[str, Any] | None, prefill: Mapping[str, Any] | None
    ) -> tuple[DecodeSettings, PrefillSettings]:
        """The settings of a request that chose these; None: nothing.

        Raises:
            RequestError: names the field and what is allowed.
        """
        decoding, prefilling = self.decode.settings(decode), self.prefill.settings(prefill)
        decode_method, prefill_method = DECODE.make(decoding), PREFILL.make(prefilling)
        for field, method in ((self.decode.field, decode_method), (self.prefill.field, prefill_method)):
            missing = method.sidecars() - self.sidecars
            if missing:
                kinds = ", ".join(sorted({sidecar.kind for sidecar in missing}))
                raise RequestError(
                    f"{field}: these settings need other sidecars than are kept here: {kinds}", field
                )
        reason = why_not(decode_method, prefill_method)
        if reason is not None:
            raise RequestError(f"headway.{reason}", f"headway.{reason.partition(':')[0]}")
        return decoding, prefilling
