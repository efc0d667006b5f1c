"""`headway recipes`: the methods for people."""

import json
import re
from collections.abc import Sequence
from typing import Any

import yaml
from rich.console import Console, Group
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from headway.engine.catalogue import Entry, Setting, entries, entry, settings
from headway.engine.methods.kind import DECODE, PREFILL, Kind
from headway.engine.selection.settings import BudgetSettings

_HOW = """\
Which methods serve is said in the file of `headway serve --config FILE`:

    recipe:
      prefill: {method: xattention}            # every prompt, unless the request chooses for itself
      decode: {method: quest, budget: 1024}    # every generated token, likewise
      requests:                                # what else requests may choose; dense they always may
        methods: [snapkv]
        prefill_methods: [moba]

A request chooses with `extra_body` of the openai client, and reads in `usage.headway` what came of it:

    extra_body={"headway": {"decode": {"method": "quest", "budget": 512}, "prefill": {"method": "dense"}}}

`headway recipes METHOD` shows one method in full."""

_TOLD = ("budget", "dense_below", "dense_tail")
"""Settings that the example of a method shows, where it has them."""


def show_all(console: Console) -> None:
    """Print every method on a few lines, and the settings that they share."""
    decoding, prefilling = settings(DECODE.common), settings(PREFILL.common)
    ranking = settings(BudgetSettings)
    console.print(_methods("Prefill methods: what a prompt's tokens read", PREFILL, prefilling))
    console.print(_methods("Decode methods: what each generated token reads", DECODE, ranking))
    console.print(_settings("Settings of every prefill method", prefilling))
    console.print(_settings("Settings of every decode method", decoding))
    console.print(_settings("Settings of ranking, in decode", ranking[len(decoding) :]))
    console.print(Text(f"\n{_HOW}"))


def show_one(console: Console, name: str) -> None:
    """Print all there is to say of the methods of a name: one, or one of each kind.

    Raises:
        ConfigError: there is no such method.
    """
    for one in entries(name):
        facts = Table.grid(padding=(0, 2))
        facts.add_column(style="bold")
        facts.add_column()
        facts.add_row("keeps", Text(_kept(one)))
        facts.add_row("shares", Text(one.sharing))
        facts.add_row("limits", Text("\n".join(one.limits) or "none"))
        text = Text(re.sub(r"\n(?!- )", "\n\n", one.text) + "\n")
        console.print(Panel(Group(text, facts), title=f"{name}, in {one.kind}", title_align="left"))
        console.print(_settings("Settings", one.settings))
        shown = {setting.name: setting.default for setting in one.settings if setting.name in _TOLD}
        example = yaml.safe_dump({"recipe": {one.kind: {"method": name, **shown}}}, sort_keys=False)
        console.print(Text(example, style="cyan"))


def _methods(title: str, kind: Kind[Any, Any], shared: Sequence[Setting]) -> Table:
    table = Table(title=title, title_justify="left", show_lines=True, show_header=False)
    table.add_column(no_wrap=True, style="bold")
    table.add_column(ratio=1)
    for one in (entry(kind, name) for name in kind.names()):
        own = [
            f"{setting.name} {json.dumps(setting.default)}"
            for setting in one.settings
            if setting not in shared
        ]
        if kind is DECODE and "budget" in {setting.name for setting in one.settings}:
            own.append("and those of ranking")
        facts = Table.grid(padding=(0, 1))
        facts.add_column(style="dim", no_wrap=True)
        facts.add_column()
        if own:
            facts.add_row("settings", Text(", ".join(own)))
        if one.sidecars:
            facts.add_row("keeps", Text(_kept(one)))
        facts.add_row("shares", Text(one.sharing.partition(".")[0]))
        if one.limits:
            facts.add_row("limits", Text("\n".join(one.limits)))
        table.add_row(one.name, Group(Text(one.summary), facts))
    return table


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
