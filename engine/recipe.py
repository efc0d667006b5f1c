"""Recipes: which decode method serves which request, from the configuration and the request's own wishes."""

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, Field, SerializeAsAny, field_validator

from headway.engine.config_section import Positive, Section, nearest, parse
from headway.engine.errors import ConfigError, RequestError
from headway.engine.layer_spec import LayerSpec
from headway.engine.methods import decode
from headway.engine.methods.decode import AnyMethod, dense
from headway.engine.selection.settings import BudgetSettings, DecodeSettings
from headway.engine.sidecars import Sidecar


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
        raise ValueError(f"method {name!r} is unknown; did you mean {nearest(name, decode.names())}")
    settings, _ = decode.load(name)
    try:
        return parse(settings, dict(data))
    except ConfigError as error:
        raise ValueError(str(error)) from error


AnySettings = Annotated[SerializeAsAny[DecodeSettings], BeforeValidator(parse_decode)]


class RequestsConfig(Section):
    """What a request may choose for itself with `extra_body={"headway": {"decode": {…}}}`."""

    methods: tuple[str, ...] | None = Field(
        None, description="Methods a request may name; default: dense and the server's own."
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


class Recipes:
    """The methods that one engine serves, checked against its model.

    Raises:
        ConfigError: the model cannot be served that way.
    """

    def __init__(self, config: RecipeConfig, specs: Sequence[LayerSpec], page_size: int) -> None:
        self._default = config.decode
        self._max_budget = config.requests.max_budget
        own = {"dense", self._default.method}
        self._allowed = own if config.requests.methods is None else own | set(config.requests.methods)
        self._specs, self._page_size = specs, page_size
        self._method = lru_cache(maxsize=1024)(self._make)
        self._offered = [self._method(self._base(name)) for name in sorted(self._allowed)]

    @property
    def sidecars(self) -> frozenset[Sidecar]:
        """What must be kept beside the pages for every method that is offered."""
        return frozenset().union(*(method.sidecars() for method in self._offered))

    def method(self, choice: Mapping[str, Any] | None) -> AnyMethod | None:
        """What serves a request that chose `choice`; None: dense.

        Raises:
            RequestError: names the field and what is allowed.
        """
        settings = self._default if choice is None else self._chosen(dict(choice))
        return None if settings.method == "dense" else self._checked(settings)

    def _chosen(self, choice: dict[str, Any]) -> DecodeSettings:
        name = choice.pop("method", self._default.method)
        if name not in self._allowed:
            allowed = ", ".join(sorted(self._allowed))
            raise RequestError(f"method {name!r} is not offered here; allowed: {allowed}", f"{FIELD}.method")
        base = self._base(name).model_dump()
        unknown = next((key for key in choice if key not in base), None)
        if unknown is not None:
            near = nearest(unknown, sorted(base))
            raise RequestError(
                f"{unknown} is no setting of {name}; did you mean {near}", f"{FIELD}.{unknown}"
            )
        try:
            settings = parse_decode(base | choice)
        except ValueError as error:
            field = str(error).split(":")[0]
            raise RequestError(str(error), f"{FIELD}.{field}" if field in base else FIELD) from error
        if isinstance(settings, BudgetSettings) and settings.budget > self._max_budget:
            raise RequestError(f"budget must lie in 1…{self._max_budget}", f"{FIELD}.budget")
        return settings

    def _base(self, name: str) -> DecodeSettings:
        """The configured settings of a method, or its defaults."""
        return (
            self._default
            if name == self._default.method
            else decode.load(name)[0].model_validate({"method": name})
        )

    def _checked(self, settings: DecodeSettings) -> AnyMethod:
        try:
            method = self._method(settings)
        except ConfigError as error:
            raise RequestError(str(error), FIELD) from error
        missing = method.sidecars() - self.sidecars
        if missing:
            raise RequestError(f"these settings need {sorted(missing)}, which is not kept here", FIELD)
        return method

    def _make(self, settings: DecodeSettings) -> AnyMethod:
        method = decode.load(settings.method)[1](settings)
        method.check(self._specs, self._page_size)
        return method


FIELD = "headway.decode"
