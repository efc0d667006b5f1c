"""`headway profile`: measure a model once, with a bar for what takes long."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich import progress
from rich.console import Console

from headway.engine.config import ModelConfig
from headway.engine.errors import ConfigError
from headway.engine.loading import load
from headway.engine.profile import report
from headway.engine.profile.session import Session


class Bar:
    """Progress of one profile, as a bar."""

    def __init__(self, bars: progress.Progress, kind: str, checkpoint: Path) -> None:
        self.checkpoint: Path | None = checkpoint
        self._bars, self._kind = bars, kind
        self._task: progress.TaskID | None = None

    def begin(self, label: str, total: int) -> None:
        """A new bar takes the place of the last one."""
        self.end()
        self._task = self._bars.add_task(f"{self._kind}: {label}", total=total)

    def advance(self, steps: int = 1) -> None:
        """Move the bar."""
        if self._task is not None:
            self._bars.advance(self._task, steps)

    def end(self) -> None:
        """Take the bar away."""
        if self._task is not None:
            self._bars.remove_task(self._task)
            self._task = None


def profile(
    model: ModelConfig,
    kinds: Sequence[str],
    settings: dict[str, Any],
    out: Path,
    *,
    force: bool,
    console: Console,
) -> None:
    """Make those profiles of the model that `out` does not hold yet, and the report of all that it holds.

    Raises:
        ConfigError: a kind or a setting is wrong, or `out` holds a profile that does not fit.
        ModelRefused: the model cannot be loaded.
    """
    session = Session(out, kinds, settings, force=force)
    with console.status(f"loading {model.name}…"):
        loaded = load(model)
    finished = {kind for kind in kinds if session.finished(loaded, kind)}
    with _bars(console) as bars:
        for kind in kinds:
            if kind in finished:
                console.print(f"{kind}: stands in {out} already; --force makes it anew", highlight=False)
                continue
            start = time.monotonic()
            bar = Bar(bars, kind, session.checkpoint(kind))
            session.make(loaded, kind, bar)
            bar.end()
            console.print(f"{kind}: {out / kind}.json, {time.monotonic() - start:.0f} s", highlight=False)
    try:
        console.print(f"report: {report.write(out)}", highlight=False)
    except ConfigError as error:
        console.print(f"no report: {error}", style="yellow", highlight=False)


def _bars(console: Console) -> progress.Progress:
    return progress.Progress(
        progress.TextColumn("{task.description}"),
        progress.BarColumn(),
        progress.MofNCompleteColumn(),
        progress.TimeRemainingColumn(),
        console=console,
    )
