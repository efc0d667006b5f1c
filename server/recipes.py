"""`headway recipes`: the decode methods for people."""

import json
import re
from collections.abc import Sequence

import yaml
from rich.console import Console, Group
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from headway.engine.catalogue import Entry, Setting, entry, settings
from headway.engine.methods import decode
from headway.engine.selection.settings import BudgetSettings, DecodeSettings

_HOW = """\
Which method serves is said in the file of `headway serve --config FILE`:

    recipe:
      decode: {method: quest, budget: 1024}    # every request, unless it chooses for itself
      requests: {methods: [streaming]}         # what else requests may choose; dense they always may

A request chooses with `extra_body` of the openai client, and reads in `usage.headway` what came of it:

    extra_body={"headway": {"decode": {"method": "quest", "budget": 512}}}

`headway recipes METHOD` shows one method in full."""


def show_all(console: Console) -> None:
    """Print every method on a few lines, and the settings that they share."""
    shared, ranking = settings(DecodeSettings), settings(BudgetSettings)
    table = Table(title="Decode methods", title_justify="left", show_lines=True)
    table.add_column("method", no_wrap=True, style="bold")
    for heading, ratio in (
        ("reads", 5),
        ("settings of its own", 4),
        ("keeps beside the KV", 3),
        ("limits", 5),
    ):
        table.add_column(heading, ratio=ratio)
    for one in map(entry, decode.names()):
        own = [setting for setting in one.settings if setting not in ranking]
        ranks = ["and those of ranking"] if "budget" in {setting.name for setting in one.settings} else []
        lines = [*(f"{setting.name}: {json.dumps(setting.default)}" for setting in own), *ranks]
        cells = (one.summary, "\n".join(lines), _kept(one), "\n".join(one.limits))
        table.add_row(one.name, *map(Text, cells))
    console.print(table)
    console.print(_settings("Settings of every method", shared))
    console.print(_settings("Settings of ranking", ranking[len(shared) :]))
    console.print(Text(f"\n{_HOW}"))


def show_one(console: Console, name: str) -> None:
    """Print all there is to say of one method.

    Raises:
        ConfigError: there is no such method.
    """
    one = entry(name)
    facts = Table.grid(padding=(0, 2))
    facts.add_column(style="bold")
    facts.add_column()
    facts.add_row("keeps", Text(_kept(one)))
    facts.add_row("limits", Text("\n".join(one.limits) or "none"))
    text = Text(re.sub(r"\n(?!- )", "\n\n", one.text) + "\n")
    console.print(Panel(Group(text, facts), title=name, title_align="left"))
    console.print(_settings("Settings", one.settings))
    shown = {
        setting.name: setting.default for setting in one.settings if setting.name in ("budget", "dense_below")
    }
    example = yaml.safe_dump({"recipe": {"decode": {"method": name, **shown}}}, sort_keys=False)
    console.print(Text(example, style="cyan"))


def _kept(one: Entry) -> str:
    if not one.sidecars:
        return "nothing"
    size = f"{one.sidecar_bytes / 1024:.3g} KiB a token of an 8B model, {one.sidecar_share:.1%} of its KV"
    return f"{', '.join(one.sidecars)}: {size}"


def _settings(title: str, rows: Sequence[Setting]) -> Table:
    table = Table(title=title, title_justify="left")
    table.add_column("setting", no_wrap=True)
    table.add_column("default")
    table.add_column("allowed")
    table.add_column("meaning", ratio=1)
    for row in rows:
        table.add_row(row.name, *map(Text, (json.dumps(row.default), row.allowed, row.meaning)))
    return table
