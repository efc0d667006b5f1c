"""Recipes: the methods that one engine serves, checked against its model."""

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Generic

from headway.engine.errors import ConfigError, RequestError
from headway.engine.layer_spec import LayerSpec
from headway.engine.messages import Submit
from headway.engine.methods import decode, prefill
from headway.engine.methods.kind import Method, Settings
from headway.engine.methods.routed import RoutedDecode, RoutedPrefill
from headway.engine.offer import Offer
from headway.engine.offers import Offers
from headway.engine.recipe import RecipeConfig
from headway.engine.request import granule_of
from headway.engine.selection.head_route import HeadRoutes
from headway.engine.sidecars import Sidecar


class Recipes:
    """The methods that one engine serves, one object for equal settings.

    Args:
        room: tokens of a step that prompts can count on: a granule must fit.
        routes: which heads stream, whatever the method; None: none.

    Raises:
        ConfigError: the model cannot be served that way.
    """

    def __init__(
        self,
        config: RecipeConfig,
        specs: Sequence[LayerSpec],
        page_size: int,
        room: int | None = None,
        routes: HeadRoutes | None = None,
    ) -> None:
        self._offers = Offers(config)
        self._specs, self._page_size, self._room = specs, page_size, room
        self._decode = _Served(self._offers.decode, self._check_decode, RoutedDecode, routes)
        self._prefill = _Served(self._offers.prefill, self._check_prefill, RoutedPrefill, routes)

    @property
    def dense_below(self) -> int:
        """Tokens up to which a method that is offered reads everything, as it is offered."""
        offers = (self._offers.decode, self._offers.prefill)
        return max(offer.of(name).dense_below for offer in offers for name in offer.methods)

    @property
    def sidecars(self) -> frozenset[Sidecar]:
        """What must be kept beside the pages for every method that is offered."""
        return self._offers.sidecars

    @property
    def default_prefill(self) -> prefill.AnyMethod | None:
        """What serves the prompt of a request that chooses nothing; None: dense."""
        return self._prefill.method(self._offers.prefill.default)

    def state_bytes(self, context: int) -> int:
        """The most that a decode method, as it is offered, remembers of a sequence of `context` tokens."""
        offer = self._offers.decode
        methods = (self._decode.method(offer.of(name)) for name in offer.methods)
        return max(0 if method is None else method.state_bytes(self._specs, context) for method in methods)

    def methods(self, submit: Submit) -> tuple[decode.AnyMethod | None, prefill.AnyMethod | None]:
        """What serves a request in decode and in prefill; None: dense.

        Raises:
            RequestError: names the field and what is allowed.
        """
        decoding, prefilling = self._offers.settings(submit.decode, submit.prefill)
        return self._decode.method(decoding), self._prefill.method(prefilling)

    def _check_decode(self, method: decode.AnyMethod) -> None:
        method.check(self._specs, self._page_size)

    def _check_prefill(self, method: prefill.AnyMethod) -> None:
        method.check(self._specs, self._page_size)
        granule = granule_of(method, self._page_size)
        if self._room is not None and granule > self._room:
            raise ConfigError(
                f"method: {method.settings.method} computes whole granules of {granule} tokens (of its own "
                f"{method.granule}, in pages of {self._page_size}), but a step has room for {self._room}: "
                "raise scheduler.max_step_tokens, or lower scheduler.max_running"
            )


class _Served(Generic[Settings, Method]):
    """The methods of one kind that have passed `check`; with `routes`, what `routed` makes of each."""

    def __init__(
        self,
        offer: Offer[Settings, Method],
        check: Callable[[Method], None],
        routed: Callable[[Method, HeadRoutes], Method],
        routes: HeadRoutes | None,
    ) -> None:
        self._offer, self._check = offer, check
        self._routed, self._routes = routed, routes
        self._checked = lru_cache(maxsize=1024)(self._make)
        for name in offer.methods:
            if name == "dense" and routes is None:
                continue
            try:
                self._checked(offer.of(name))
            except ConfigError as error:
                own, offered = offer.kind.name, offer.kind.offered
                if name == offer.default.method:
                    raise ConfigError(f"recipe.{own}.{error}") from error
                raise ConfigError(f"recipe.requests.{offered}: {name} cannot be offered: {error}") from error

    def method(self, settings: Settings) -> Method | None:
        """The method of these settings; None: dense in all heads."""
        if settings.method == "dense" and self._routes is None:
            return None
        try:
            return self._checked(settings)
        except ConfigError as error:
            field = f"{self._offer.field}.{str(error).partition(':')[0]}"
            raise RequestError(f"{self._offer.field}.{error}", field) from error

    def _make(self, settings: Settings) -> Method:
        method = self._offer.kind.make(settings)
        if self._routes is not None:
            method = self._routed(method, self._routes)
        self._check(method)
        return method
