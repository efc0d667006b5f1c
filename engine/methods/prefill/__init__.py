"""Prefill methods: a file here is a method, its name the file's."""

from functools import cache
from importlib import import_module
from pkgutil import iter_modules
from typing import Any

from headway.engine.methods.prefill.base import PrefillMethod
from headway.engine.selection.prefill_settings import PrefillSettings

AnyMethod = PrefillMethod[Any]


@cache
def names() -> tuple[str, ...]:
    """The registered methods, in alphabetical order."""
    return tuple(sorted(module.name for module in iter_modules(__path__) if module.name != "base"))


@cache
def load(name: str) -> tuple[type[PrefillSettings], type[AnyMethod]]:
    """A method's settings model and its class; `name` is one of `names()`."""
    module = import_module(f"{__name__}.{name}")
    return module.Settings, module.Method
