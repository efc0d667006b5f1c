"""Recipes: which decode method serves which request, from the configuration and the request's own wishes."""

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, SerializeAsAny, ValidationError, field_validator

from headway.engine.config_section import Positive, Section, WrongKeys, explain, nearest
from headway.engine.errors import ConfigError, RequestError
from headway.engine.layer_spec import LayerSpec
from headway.engine.methods import decode
from headway.engine.methods.decode import AnyMethod, dense
from headway.engine.selection.settings import MOST, BudgetSettings, DecodeSettings, of_requests
from headway.engine.sidecars import Sidecar

FIELD = "headway.decode"
"""Where a request says what it chooses."""


def parse_decode(data: Any) -> DecodeSettings:
    """The settings of the method that `data` names.

    Raises:
        ValueError: names the wrong key and what is allowed.
    """
    if isinstance(data, DecodeSettings):
        return data
    if not isinstance(data, Mapping) or not isinstance(data.get("method"), str):
        raise ValueError(f"must be a mapping with a `method`: one of {', '.join(decode.names())}")
    name = data["method"]
    if name not in decode.names():
        raise WrongKeys(f"method: {name!r} is unknown; did you mean {nearest(name, decode.names())}")
    schema, _ = decode.load(name)
    try:
        return schema.model_validate(dict(data))
    except ValidationError as error:
        raise WrongKeys("\n".join(explain(schema, error))) from error


AnySettings = Annotated[SerializeAsAny[DecodeSettings], BeforeValidator(parse_decode)]


class RequestsConfig(Section):
    """What a request may choose for itself with `extra_body={"headway": {"decode": {…}}}`."""

    methods: tuple[str, ...] | None = Field(
        None, description="Methods a request may name beside `dense` and the server's own; default: no other."
    )
    max_budget: Positive = Field(16_384, description="Largest budget a request may ask for, in tokens.")

    @field_validator("methods")
    @classmethod
    def _are_known(cls, value: tuple[str, ...] | None) -> tuple[str, ...] | None:
        for name in value or ():
            if name not in decode.names():
                raise ValueError(f"{name!r} is unknown; did you mean {nearest(name, decode.names())}")
        return value


class RecipeConfig(Section):
    """How the model is served: what its layers read."""

    decode: AnySettings = Field(dense.Settings(), description="Method and settings of decode steps.")
    requests: RequestsConfig = RequestsConfig()


class Offer:
    """What requests may choose, as far as the configuration alone says it.

    Attributes:
        default: what serves a request that chooses nothing.
        methods: what a request may name, in alphabetical order.
        max_budget: the largest budget it may ask for, in tokens.
    """

    def __init__(self, config: RecipeConfig) -> None:
        self.default = config.decode
        self.methods = tuple(sorted({"dense", self.default.method, *(config.requests.methods or ())}))
        self.max_budget = max(config.requests.max_budget, _budget(self.default))
        self.sidecars: frozenset[Sidecar] = frozenset().union(
            *(new_method(self.of(name)).sidecars() for name in self.methods)
        )

    def of(self, name: str) -> DecodeSettings:
        """A method's settings where a request chooses none: the server's own, or the defaults."""
        return self.default if name == self.default.method else _defaults(name)

    def settings(self, choice: Mapping[str, Any] | None) -> DecodeSettings:
        """The settings of a request that chose `choice`: a method's name and what shall differ from `of` it.

        Raises:
            RequestError: names the field and what is allowed.
        """
        if choice is None:
            return self.default
        name = choice.get("method", self.default.method)
        if name not in self.methods:
            offered = nearest(str(name)[:80], self.methods)
            raise RequestError(
                f"{FIELD}.method: {str(name)[:80]!r} is not offered here (recipe.requests.methods of the "
                f"server's configuration); did you mean {offered}",
                f"{FIELD}.method",
            )
        settings = _merged(self.of(name), choice)
        if _budget(settings) > self.max_budget:
            field = f"{FIELD}.budget"
            raise RequestError(f"{field}: at most {self.max_budget} here, not {_budget(settings)}", field)
        missing = new_method(settings).sidecars() - self.sidecars
        if missing:
            kinds = ", ".join(sorted({sidecar.kind for sidecar in missing}))
            raise RequestError(
                f"{FIELD}: these settings need other sidecars than are kept here: {kinds}", FIELD
            )
        return settings


class Recipes:
    """The methods that one engine serves, checked against its model.

    Raises:
        ConfigError: the model cannot be served that way.
    """

    def __init__(self, config: RecipeConfig, specs: Sequence[LayerSpec], page_size: int) -> None:
        self._offer = Offer(config)
        self._specs, self._page_size = specs, page_size
        self._method = lru_cache(maxsize=1024)(self._make)
        for name in self._offer.methods:
            try:
                self._method(self._offer.of(name))
            except ConfigError as error:
                own = name == self._offer.default.method
                where = "recipe.decode." if own else f"recipe.requests.methods: {name} cannot be offered: "
                raise ConfigError(f"{where}{error}") from error

    @property
    def sidecars(self) -> frozenset[Sidecar]:
        """What must be kept beside the pages for every method that is offered."""
        return self._offer.sidecars

    def method(self, choice: Mapping[str, Any] | None) -> AnyMethod | None:
        """What serves a request that chose `choice`; None: dense.

        Raises:
            RequestError: names the field and what is allowed.
        """
        settings = self._offer.settings(choice)
        if settings.method == "dense":
            return None
        try:
            return self._method(settings)
        except ConfigError as error:
            field = f"{FIELD}.{str(error).partition(':')[0]}"
            raise RequestError(f"{FIELD}.{error}", field) from error

    def _make(self, settings: DecodeSettings) -> AnyMethod:
        method = new_method(settings)
        method.check(self._specs, self._page_size)
        return method


def new_method(settings: DecodeSettings) -> AnyMethod:
    """The method of these settings, not checked against any model."""
    return decode.load(settings.method)[1](settings)


def _defaults(name: str) -> DecodeSettings:
    return decode.load(name)[0].model_validate({"method": name})


def _merged(base: DecodeSettings, choice: Mapping[str, Any]) -> DecodeSettings:
    schema = type(base)
    for key, value in choice.items():
        _check_plain(key, value, schema, base.method)
    try:
        return schema.model_validate({**dict(base), **choice}, strict=True)
    except ValidationError as error:
        [what, *_] = error.errors()
        field = ".".join((FIELD, *map(str, what["loc"])))
        raise RequestError(f"{field}: {what['msg'].removeprefix('Value error, ')}", field) from error


def _check_plain(key: str, value: Any, schema: type[DecodeSettings], method: str) -> None:
    field = f"{FIELD}.{key[:80]}"
    allowed = of_requests(schema)
    if key not in schema.model_fields:
        near = nearest(key[:80], sorted(allowed))
        raise RequestError(f"{field}: {method} has no such setting; did you mean {near}", field)
    if key not in allowed:
        raise RequestError(f"{field}: only the server's configuration sets it", field)
    if isinstance(value, int) and abs(value) > MOST:
        raise RequestError(f"{field}: must lie in {-MOST}…{MOST}", field)


def _budget(settings: DecodeSettings) -> int:
    return settings.budget if isinstance(settings, BudgetSettings) else 0
