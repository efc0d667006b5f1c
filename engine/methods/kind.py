"""Kind: decode methods and prefill methods are named, configured and chosen alike."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

from pydantic import ValidationError

from headway.engine.config_section import WrongKeys, explain, nearest
from headway.engine.layer_spec import LayerSpec
from headway.engine.methods import decode, prefill
from headway.engine.selection.prefill_settings import PrefillSettings
from headway.engine.selection.settings import DecodeSettings, MethodSettings
from headway.engine.sidecars import Sidecar


class AnyMethod(Protocol):
    """What decode and prefill methods have in common."""

    def __init__(self, settings: Any) -> None: ...

    def sidecars(self) -> frozenset[Sidecar]:
        """What must be kept beside the pages."""

    def check(self, specs: Sequence[LayerSpec], page_size: int) -> None:
        """Refuse a model that the settings do not fit, by a ConfigError."""


Settings = TypeVar("Settings", bound=MethodSettings)
Method = TypeVar("Method", bound=AnyMethod)


@dataclass(frozen=True, slots=True)
class Kind(Generic[Settings, Method]):
    """One kind of method.

    Attributes:
        name: its key in a recipe, and under `headway` in a request.
        common: the settings of all its methods.
        offered: the key of `recipe.requests` for the methods that requests may choose.
        names: the registered methods, in alphabetical order.
        load: the settings model and the class of one of them.
    """

    name: str
    common: type[Settings]
    offered: str
    names: Callable[[], tuple[str, ...]]
    load: Callable[[str], tuple[type[Settings], type[Method]]]

    def parse(self, data: Any) -> Settings:
        """The settings of the method that `data` names.

        Raises:
            ValueError: names the wrong key and what is allowed.
        """
        if isinstance(data, self.common):
            return data
        if not isinstance(data, Mapping) or not isinstance(data.get("method"), str):
            raise ValueError(f"must be a mapping with a `method`: one of {', '.join(self.names())}")
        name = data["method"]
        if name not in self.names():
            raise WrongKeys(f"method: {name!r} is unknown; did you mean {nearest(name, self.names())}")
        schema, _ = self.load(name)
        try:
            return schema.model_validate(dict(data))
        except ValidationError as error:
            raise WrongKeys("\n".join(explain(schema, error))) from error

    def defaults(self, name: str) -> Settings:
        """A method's settings where nothing else is said."""
        return self.load(name)[0].model_validate({"method": name})

    def make(self, settings: Settings) -> Method:
        """The method of these settings, not checked against any model."""
        return self.load(settings.method)[1](settings)


DECODE = Kind("decode", DecodeSettings, "methods", decode.names, decode.load)
PREFILL = Kind("prefill", PrefillSettings, "prefill_methods", prefill.names, prefill.load)
