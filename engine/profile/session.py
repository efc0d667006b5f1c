"""Session: the profiles of one model in one folder; what is finished is not made again."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from headway.engine.config_section import nearest, parse
from headway.engine.errors import ConfigError
from headway.engine.loaded import LoadedModel
from headway.engine.profile import load as load_kind
from headway.engine.profile import names
from headway.engine.profile.artefact import Artefact, exists, load, save
from headway.engine.profile.progress import Progress


class Session:
    """Makes profiles and keeps them in a folder, `KIND.json` and `KIND.safetensors` each.

    Attributes:
        settings: by kind, checked.
    """

    def __init__(self, out: Path, kinds: Sequence[str], settings: dict[str, Any], *, force: bool) -> None:
        """Check what is asked for, before any model is loaded.

        Args:
            settings: by kind; a kind that is missing has its defaults.
            force: make everything anew.

        Raises:
            ConfigError: a kind is unknown, a setting is wrong, or for a kind that is not asked for.
        """
        for kind in kinds:
            if kind not in names():
                raise ConfigError(f"--what: {kind!r} is unknown; did you mean {nearest(kind, names())}")
        for kind, value in settings.items():
            if kind not in kinds:
                raise ConfigError(f"settings: {kind!r} is not among --what: {', '.join(kinds)}")
            if not isinstance(value, dict):
                raise ConfigError(f"settings: {kind} must be a mapping, not a {type(value).__name__}")
        self.settings = {kind: parse(load_kind(kind).Settings, settings.get(kind, {})) for kind in kinds}
        self._out = out
        self._force = force

    def finished(self, loaded: LoadedModel, kind: str) -> Artefact | None:
        """The profile that stands in the folder already, or None.

        Raises:
            ConfigError: it is of another model or was made with other settings.
        """
        path = self._out / kind
        if self._force or not exists(path):
            return None
        artefact = load(path)
        wanted = self.settings[kind].model_dump(mode="json")
        try:
            artefact.check(loaded)
        except ConfigError as error:
            raise ConfigError(f"{path}.json is in the way; --force replaces it: {error}") from error
        before = artefact.facts.settings
        if changed := [name for name in wanted if before.get(name) != wanted[name]]:
            was = ", ".join(f"{name} = {before.get(name)}" for name in changed)
            raise ConfigError(f"{path}.json was made with {was}; --force replaces it")
        return artefact

    def checkpoint(self, kind: str) -> Path:
        """Where a kind may leave what it has done so far."""
        return self._out / f"{kind}.checkpoint"

    def make(self, loaded: LoadedModel, kind: str, progress: Progress) -> Artefact:
        """Make a profile and save it.

        Raises:
            HeadwayError: the model cannot be profiled so, with the reason.
        """
        self._out.mkdir(parents=True, exist_ok=True)
        checkpoint = self.checkpoint(kind)
        if self._force:
            checkpoint.unlink(missing_ok=True)
        artefact: Artefact = load_kind(kind).run(loaded, self.settings[kind], progress)
        save(self._out / kind, artefact)
        checkpoint.unlink(missing_ok=True)
        return artefact
