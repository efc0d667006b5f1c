"""Recipes: the methods that an engine serves, checked against its model."""

from typing import Any

import pytest

from headway.engine.config import EngineConfig
from headway.engine.config_section import parse
from headway.engine.errors import ConfigError, RequestError
from headway.engine.layer_spec import LayerSpec
from headway.engine.messages import SamplingParams, Submit
from headway.engine.methods import decode, prefill
from headway.engine.recipes import Recipes

PAGE_SIZE = 64
SPECS = tuple(
    LayerSpec(layer_idx=i, kv_source=i, num_heads=4, num_kv_heads=2, key_dim=16, value_dim=16, scale=0.25)
    for i in range(4)
)
QUEST = {"method": "quest", "budget": 1024, "dense_below": 512}
STREAMING = {"method": "streaming", "tile": 96}


def recipes(room: int | None = None, page_size: int = PAGE_SIZE, **section: Any) -> Recipes:
    return Recipes(parse(EngineConfig, {"recipe": section}).recipe, SPECS, page_size, room)


def submit(decode: dict[str, Any] | None = None, prefill: dict[str, Any] | None = None) -> Submit:
    return Submit(request_id="r", prompt=[1], sampling=SamplingParams(), decode=decode, prefill=prefill)


def test_equal_settings_have_one_method() -> None:
    made = recipes(decode=QUEST, prefill=STREAMING)
    own = made.methods(submit())
    assert own[0] is not None
    assert own[1] is not None
    assert made.methods(submit({"method": "quest", "budget": 1024}, {"window_size": 1024})) == own
    other = made.methods(submit({"budget": 700}, {"window_size": 700}))
    assert (other[0] is own[0], other[1] is own[1]) == (False, False)
    assert made.sidecars == own[0].sidecars()


def test_dense_is_no_method() -> None:
    dense = {"method": "dense"}
    assert recipes(room=1).methods(submit()) == (None, None)
    made = recipes(decode=QUEST, prefill=STREAMING)
    assert made.methods(submit(dense, dense)) == (None, None)
    assert made.methods(submit(dense))[1] is made.methods(submit())[1]


def test_a_method_that_does_not_fit_the_model_ends_the_start() -> None:
    with pytest.raises(
        ConfigError, match=r"^recipe\.decode\.unit: must divide cache\.page_size = 64, not 24"
    ):
        recipes(decode=QUEST | {"unit": 24})
    with pytest.raises(ConfigError, match=r"^recipe\.requests\.methods: quest cannot be offered: unit: "):
        recipes(page_size=24, requests={"methods": ["quest"]})


def test_granules_that_do_not_fit_a_step_end_the_start() -> None:
    # Tiles of 96 tokens in pages of 64: granules of 192.
    assert recipes(room=192, prefill=STREAMING).methods(submit())[1] is not None
    told = r"method: streaming .* granules of 192 tokens .* 96, .* room for 191: raise scheduler\.max_step"
    with pytest.raises(ConfigError, match=rf"^recipe\.prefill\.{told}"):
        recipes(room=191, prefill=STREAMING)
    with pytest.raises(
        ConfigError, match=r"^recipe\.requests\.prefill_methods: streaming cannot be offered: method: "
    ):
        recipes(room=100, requests={"prefill_methods": ["streaming"]})


@pytest.mark.parametrize(("kind", "name"), [("decode", "quest"), ("prefill", "streaming")])
def test_a_choice_that_does_not_fit_the_model_is_the_requests_fault(
    kind: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = recipes(decode=QUEST, prefill=STREAMING)

    def check(*_: object) -> None:
        raise ConfigError("window_size: is odd")

    registry = {"decode": decode, "prefill": prefill}[kind]
    monkeypatch.setattr(registry.load(name)[1], "check", check)
    with pytest.raises(RequestError, match=rf"^headway\.{kind}\.window_size: is odd") as caught:
        made.methods(submit(**{kind: {"window_size": 301}}))
    assert caught.value.field == f"headway.{kind}.window_size"
