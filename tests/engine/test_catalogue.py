"""What `headway recipes` tells of each method is there, and true."""

import pytest

from headway.engine.catalogue import entry, settings
from headway.engine.errors import ConfigError
from headway.engine.methods import decode
from headway.engine.selection.settings import BudgetSettings


@pytest.mark.parametrize("name", decode.names())
def test_every_method_says_what_it_is(name: str) -> None:
    one = entry(name)
    assert one.summary.endswith(".")
    assert not one.summary.startswith(name)
    assert "\n" not in one.summary
    assert all(limit.endswith(".") for limit in one.limits)
    assert [setting.name for setting in one.settings if not setting.meaning] == []
    assert [setting.name for setting in one.settings] == list(decode.load(name)[0].model_fields)[1:]


def test_sidecars_are_counted() -> None:
    quest, dense = entry("quest"), entry("dense")
    # A key of bounds twice over, for each 16 keys and values.
    assert quest.sidecar_share == pytest.approx(1 / 16)
    # In 32 layers, 8 KV heads have keys and values of 128 numbers, 2 bytes each.
    assert quest.sidecar_bytes == pytest.approx(32 * 8 * 256 * 2 / 16)
    assert (quest.sidecars, dense.sidecars, dense.sidecar_bytes) == (("bounds",), (), 0)


def test_limits_are_read_off_the_method(monkeypatch: pytest.MonkeyPatch) -> None:
    _, kind = decode.load("quest")
    assert entry("quest").limits == ("The unit must divide a page.",)
    monkeypatch.setattr(kind, "observes", 32)
    monkeypatch.setattr(kind, "degrades", True)
    degrades, last, _ = entry("quest").limits
    assert degrades.startswith("Degrades")
    assert "last 32 tokens" in last
    monkeypatch.setattr(kind, "sees_all", True)
    assert "nothing from the prefix cache" in entry("quest").limits[1]


def test_settings_say_what_is_allowed() -> None:
    told = {setting.name: (setting.default, setting.allowed) for setting in settings(BudgetSettings)}
    assert told["budget"] == (2048, "whole number ≥ 1")
    assert told["fraction"] == (None, "number > 0, ≤ 1 or null")


def test_an_unknown_method_is_named_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match="'qust'; did you mean 'quest'"):
        entry("qust")
