"""Profiles: a file here with a `Settings` and a `run` measures something of a model, and is called like it.

    run(loaded: LoadedModel, settings: Settings, progress: Progress) -> Artefact

Deterministic: equal settings, seed included, give equal artefacts. `picture(artefact) -> Figure`, where a
file has it, draws what it found.
"""

from functools import cache
from importlib import import_module
from pkgutil import iter_modules
from types import ModuleType


@cache
def names() -> tuple[str, ...]:
    """The kinds of profile, in alphabetical order."""
    found = (module.name for module in iter_modules(__path__))
    return tuple(sorted(name for name in found if {"Settings", "run"} <= vars(_module(name)).keys()))


def load(name: str) -> ModuleType:
    """The module of a kind; `name` is one of `names()`."""
    return _module(name)


def _module(name: str) -> ModuleType:
    return import_module(f"{__name__}.{name}")
