"""Offer: what requests may choose of one kind of method, as far as the configuration alone says it."""

from collections.abc import Iterable, Mapping
from typing import Any, Generic

from pydantic import ValidationError

from headway.engine.config_section import nearest
from headway.engine.errors import RequestError
from headway.engine.methods.kind import Kind, Method, Settings
from headway.engine.recipe import RequestsConfig
from headway.engine.selection.settings import MOST, of_requests
from headway.engine.sidecars import Sidecar

CAPPED = {"budget": "max_budget", "max_budget": "max_budget", "fraction": "max_fraction"}
"""What a request may ask for only so much of, where a method has it: settings, and what caps each of them."""


class Offer(Generic[Settings, Method]):
    """What requests may choose, and what they get.

    Args:
        default: what serves a request that chooses nothing.
        others: what it may name beside that and `dense`.
        limits: the section `recipe.requests`, whose caps hold; the default's own values are always allowed.

    Attributes:
        methods: what a request may name, in alphabetical order.
        field: where a request says what it chooses.
        caps: the most that it may ask for, by setting.
    """

    def __init__(
        self, kind: Kind[Settings, Method], default: Settings, others: Iterable[str], limits: RequestsConfig
    ) -> None:
        self.kind = kind
        self.default = default
        self.methods = tuple(sorted({"dense", default.method, *others}))
        self.caps: dict[str, float] = {
            name: max(getattr(limits, key), getattr(default, name, None) or 0) for name, key in CAPPED.items()
        }
        self.field = f"headway.{kind.name}"
        self.sidecars: frozenset[Sidecar] = frozenset().union(
            *(kind.make(self.of(name)).sidecars() for name in self.methods)
        )

    def of(self, name: str) -> Settings:
        """A method's settings where a request chooses none: the server's own, or the defaults."""
        return self.default if name == self.default.method else self.kind.defaults(name)

    def settings(self, choice: Mapping[str, Any] | None) -> Settings:
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
                f"{self.field}.method: {str(name)[:80]!r} is not offered here (recipe.requests."
                f"{self.kind.offered} of the server's configuration); did you mean {offered}",
                f"{self.field}.method",
            )
        settings = self._merged(self.of(name), choice)
        for key, cap in self.caps.items():
            wanted = getattr(settings, key, None)
            if wanted is not None and wanted > cap:
                field = f"{self.field}.{key}"
                raise RequestError(f"{field}: at most {cap} here, not {wanted}", field)
        return settings

    def _merged(self, base: Settings, choice: Mapping[str, Any]) -> Settings:
        schema = type(base)
        for key, value in choice.items():
            self._check_plain(key, value, base)
        try:
            return schema.model_validate({**dict(base), **choice}, strict=True)
        except ValidationError as error:
            [what, *_] = error.errors()
            field = ".".join((self.field, *map(str, what["loc"])))
            raise RequestError(f"{field}: {what['msg'].removeprefix('Value error, ')}", field) from error

    def _check_plain(self, key: str, value: Any, base: Settings) -> None:
        field = f"{self.field}.{key[:80]}"
        allowed = of_requests(type(base))
        if key not in type(base).model_fields:
            near = nearest(key[:80], sorted(allowed))
            raise RequestError(f"{field}: {base.method} has no such setting; did you mean {near}", field)
        if key not in allowed:
            raise RequestError(f"{field}: only the server's configuration sets it", field)
        if isinstance(value, int) and abs(value) > MOST:
            raise RequestError(f"{field}: must lie in {-MOST}…{MOST}", field)
