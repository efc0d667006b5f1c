"""What `headway recipes` tells of each method is there, and true."""

from typing import Any

import pytest

from headway.engine.catalogue import Entry, entries, entry, settings
from headway.engine.errors import ConfigError
from headway.engine.methods.kind import DECODE, PREFILL, Kind
from headway.engine.selection.settings import BudgetSettings, of_requests

EVERY_METHOD = [(kind, name) for kind in (DECODE, PREFILL) for name in kind.names()]


def quest() -> Entry:
    return entry(DECODE, "quest")


@pytest.mark.parametrize(("kind", "name"), EVERY_METHOD)
def test_every_method_says_what_it_is(kind: Kind[Any, Any], name: str) -> None:
    one = entry(kind, name)
    assert (one.kind, one.name) == (kind.name, name)
    assert one.summary.endswith(".")
    assert not one.summary.startswith(name)
    assert "\n" not in one.summary
    assert "  " not in one.text
    assert one.sharing.endswith(".")
    assert all(limit.endswith(".") for limit in one.limits)
    assert [setting.name for setting in one.settings if not setting.meaning] == []
    assert [setting.name for setting in one.settings] == list(kind.load(name)[0].model_fields)[1:]


@pytest.mark.parametrize("name", PREFILL.names())
def test_prefill_says_what_the_prefix_cache_does(name: str) -> None:
    one, method = entry(PREFILL, name), PREFILL.make(PREFILL.defaults(name))
    told = {True: "Row-local", False: "Prompt-global"}[method.row_local]
    assert (told in one.sharing and f" {method.granule} tokens" in one.sharing) is (name != "dense")
    assert ("h2o" in " ".join(one.limits)) is (name != "dense")
    assert ("max_step_tokens" in " ".join(one.limits)) is (method.granule > 2048 - 64)


def test_sidecars_are_counted() -> None:
    dense = entry(DECODE, "dense")
    # A key of bounds twice over, for each 16 keys and values.
    assert quest().sidecar_share == pytest.approx(1 / 16)
    # In 32 layers, 8 KV heads have keys and values of 128 numbers, 2 bytes each.
    assert quest().sidecar_bytes == pytest.approx(32 * 8 * 256 * 2 / 16)
    assert (quest().sidecars, dense.sidecars, dense.sidecar_bytes) == (("bounds",), (), 0)


def test_limits_are_read_off_the_method(monkeypatch: pytest.MonkeyPatch) -> None:
    _, kind = DECODE.load("quest")
    assert quest().limits == ("The unit must divide a page.",)
    assert quest().sharing.startswith("All pages")
    monkeypatch.setattr(kind, "observes", 32)
    monkeypatch.setattr(kind, "degrades", True)
    degrades, dense_tail, _ = quest().limits
    assert degrades.startswith("Degrades")
    assert "dense_tail of 32" in dense_tail
    assert "last 32 tokens" in quest().sharing
    monkeypatch.setattr(kind, "sees_all", True)
    assert quest().limits[1] == "Needs dense prefill."
    assert quest().sharing.startswith("Nothing")


def test_what_all_methods_have_is_not_told_of_each() -> None:
    assert "tile" not in of_requests(PREFILL.common)
    assert not any("tile" in limit for limit in entry(PREFILL, "streaming").limits)
    assert entry(DECODE, "loki").limits[-1] == "Not for requests to choose: basis."


def test_settings_say_what_is_allowed() -> None:
    told = {setting.name: (setting.default, setting.allowed) for setting in settings(BudgetSettings)}
    assert told["budget"] == (2048, "whole number ≥ 1")
    assert told["fraction"] == (None, "number > 0, ≤ 1 or null")


def test_a_name_stands_for_methods_of_both_kinds() -> None:
    assert [one.kind for one in entries("streaming")] == ["decode", "prefill"]
    assert [one.kind for one in entries("quest")] == ["decode"]


def test_an_unknown_method_is_named_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match="'qust'; did you mean 'quest'"):
        entries("qust")
