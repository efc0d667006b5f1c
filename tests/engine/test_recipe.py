"""Recipes: what a configuration serves, what a request may choose of it, and how both are refused."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headway.engine.config import EngineConfig
from headway.engine.config_section import parse
from headway.engine.errors import ConfigError, RequestError
from headway.engine.layer_spec import LayerSpec
from headway.engine.methods import decode
from headway.engine.recipe import Offer, RecipeConfig, Recipes
from headway.engine.selection.settings import MOST, BudgetSettings, DecodeSettings, of_requests

SPECS = tuple(
    LayerSpec(layer_idx=i, kv_source=i, num_heads=4, num_kv_heads=2, key_dim=16, value_dim=16, scale=0.25)
    for i in range(4)
)
QUEST = {"method": "quest", "budget": 1024, "dense_below": 512}


def recipe(decode: dict[str, Any] | None = None, **requests: Any) -> RecipeConfig:
    data: dict[str, Any] = {"requests": requests}
    if decode is not None:
        data["decode"] = decode
    return parse(EngineConfig, {"recipe": data}).recipe


def refused(offer: Offer, choice: dict[str, Any]) -> RequestError:
    with pytest.raises(RequestError) as caught:
        offer.settings(choice)
    assert caught.value.field is not None
    assert str(caught.value).startswith(caught.value.field)
    return caught.value


@pytest.mark.parametrize(
    ("section", "told"),
    [
        ({"decode": {"method": "qust"}}, ["recipe.decode.method", "'quest'"]),
        ({"decode": {"method": "quest", "budgett": 1}}, ["recipe.decode.budgett", "'budget'"]),
        ({"decode": {"method": "dense", "budget": 1}}, ["recipe.decode.budget", "unknown key"]),
        ({"decode": {"method": "quest", "budget": 0}}, ["recipe.decode.budget", "1"]),
        ({"decode": {"method": "quest", "window_size": 9000}}, ["recipe.decode.budget", "9064"]),
        ({"decode": {"method": "quest", "fraction": 1.5}}, ["recipe.decode.fraction", "1"]),
        ({"decode": {"method": 5}}, ["recipe.decode", "dense"]),
        ({"decode": "quest"}, ["recipe.decode", "mapping"]),
        ({"decode": {}}, ["recipe.decode", "method"]),
        ({"decod": {}}, ["recipe.decod", "'decode'"]),
        ({"requests": {"methods": ["dens"]}}, ["recipe.requests.methods", "'dense'"]),
        ({"requests": {"max_buget": 5}}, ["recipe.requests.max_buget", "'max_budget'"]),
        ({"requests": {"max_budget": 0}}, ["recipe.requests.max_budget"]),
    ],
)
def test_a_wrong_recipe_names_the_key(section: dict[str, Any], told: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(EngineConfig, {"recipe": section})
    assert all(part in str(caught.value) for part in told), caught.value


def test_every_wrong_key_of_a_recipe_is_named() -> None:
    with pytest.raises(ConfigError) as caught:
        parse(EngineConfig, {"recipe": {"decode": {"method": "quest", "budget": "x", "sink_sise": 1}}})
    lines = str(caught.value).splitlines()
    assert [line.partition(":")[0] for line in lines] == ["recipe.decode.budget", "recipe.decode.sink_sise"]


def test_a_recipe_passes_to_the_engines_process_unchanged() -> None:
    config = parse(EngineConfig, {"recipe": {"decode": QUEST, "requests": {"methods": ["quest"]}}})
    assert EngineConfig.model_validate_json(config.model_dump_json()) == config


@pytest.mark.parametrize("name", decode.names())
def test_every_method_is_served_by_its_name_alone(name: str) -> None:
    offer = Offer(recipe({"method": name}))
    assert offer.settings(None) == offer.default == offer.settings({}) == offer.settings({"method": name})
    assert offer.methods == tuple(sorted({name, "dense"}))
    assert Offer(recipe(methods=[name])).settings({"method": name}) == offer.default


def test_a_request_changes_what_it_names_and_nothing_else() -> None:
    offer = Offer(recipe(QUEST))
    chosen = offer.settings({"budget": 700, "fraction": 1})
    assert isinstance(chosen, BudgetSettings)
    assert chosen == offer.default.model_copy(update={"budget": 700, "fraction": 1.0})
    assert offer.settings({"method": "dense"}).method == "dense"


def test_only_what_is_offered_can_be_chosen() -> None:
    error = refused(Offer(recipe()), {"method": "quest"})
    assert error.field == "headway.decode.method"
    assert "recipe.requests.methods" in str(error)
    assert Offer(recipe(methods=["quest"])).settings({"method": "quest"}).method == "quest"
    assert Offer(recipe(QUEST, methods=[])).methods == ("dense", "quest")


@pytest.mark.parametrize(
    ("choice", "field", "told"),
    [
        ({"method": "qest"}, "method", "'quest'"),
        ({"method": 5}, "method", "'5'"),
        ({"method": "x" * 1000}, "method", "quest"),
        ({"budgett": 3}, "budgett", "'budget'"),
        ({"method": "dense", "budget": 3}, "budget", "dense"),
        ({"budget": 0}, "budget", "1"),
        ({"budget": 16_385}, "budget", "16384"),
        ({"budget": 10**30}, "budget", str(MOST)),
        ({"budget": 319}, "budget", "320"),
        ({"budget": "5"}, "budget", "integer"),
        ({"budget": 5.0}, "budget", "integer"),
        ({"budget": True}, "budget", "integer"),
        ({"budget": [1]}, "budget", "integer"),
        ({"budget": None}, "budget", "integer"),
        ({"window_size": 2000}, "budget", "2064"),
        ({"sink_size": -1}, "sink_size", "0"),
        ({"fraction": 0}, "fraction", "0"),
        ({"mass": float("nan")}, "mass", ""),
    ],
)
def test_a_wrong_choice_names_the_field(choice: dict[str, Any], field: str, told: str) -> None:
    error = refused(Offer(recipe(QUEST)), choice)
    assert error.field == f"headway.decode.{field}"
    assert told in str(error)
    assert len(str(error)) < 500


def test_the_servers_own_budget_is_always_allowed() -> None:
    offer = Offer(recipe(QUEST, max_budget=400))
    assert offer.settings({"dense_below": 0}) == offer.default.model_copy(update={"dense_below": 0})
    assert "1024" in str(refused(offer, {"budget": 1025}))


def test_a_request_needs_no_sidecar_that_is_not_kept() -> None:
    offer = Offer(recipe(QUEST))
    error = refused(offer, {"unit": 32})
    assert error.field == "headway.decode"
    assert "bounds" in str(error)


VALUES = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5), st.lists(st.none())
)
KEYS = st.sampled_from(["method", "budget", "unit", "mass", "window_size", "x"])


@given(st.dictionaries(KEYS, VALUES))
@settings(deadline=None)
def test_whatever_is_chosen_is_served_within_the_caps_or_refused(choice: dict[str, Any]) -> None:
    offer = Offer(recipe(QUEST, max_budget=2000))
    try:
        chosen = offer.settings(choice)
    except RequestError:
        return
    assert chosen.method in offer.methods
    assert not isinstance(chosen, BudgetSettings) or chosen.budget <= 2000
    assert all(getattr(chosen, name) == value for name, value in choice.items())


@pytest.mark.parametrize("name", decode.names())
def test_requests_choose_numbers_switches_and_words_only(name: str) -> None:
    schema, _ = decode.load(name)
    fixed = set(schema.model_fields) - set(of_requests(schema))
    properties = schema.model_json_schema()["properties"]
    for key in of_requests(schema):
        kinds = [properties[key], *properties[key].get("anyOf", [])]
        free = [kind for kind in kinds if kind.get("type") in ("string", "array", "object")]
        assert all("enum" in kind or "const" in kind for kind in free), key
    offer = Offer(recipe({"method": name}))
    for key in fixed:
        assert "only the server's configuration" in str(refused(offer, {key: "/etc/passwd"}))


def test_recipes_give_equal_settings_one_method() -> None:
    recipes = Recipes(recipe(QUEST), SPECS, 64)
    own = recipes.method(None)
    assert own is not None
    assert recipes.method({"method": "quest", "budget": 1024}) is own
    assert recipes.method({"budget": 700}) is not own
    assert recipes.method({"method": "dense"}) is None
    assert Recipes(recipe(), SPECS, 64).method(None) is None
    assert recipes.sidecars == own.sidecars()


def test_a_method_that_does_not_fit_the_model_ends_the_start() -> None:
    with pytest.raises(
        ConfigError, match=r"^recipe\.decode\.unit: must divide cache\.page_size = 64, not 24"
    ):
        Recipes(recipe(QUEST | {"unit": 24}), SPECS, 64)
    with pytest.raises(ConfigError, match=r"^recipe\.requests\.methods: quest cannot be offered: unit: "):
        Recipes(recipe(methods=["quest"]), SPECS, 24)


def test_a_choice_that_does_not_fit_the_model_is_the_requests_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    recipes = Recipes(recipe(QUEST), SPECS, 64)

    def check(*_: object) -> None:
        raise ConfigError("budget: is odd")

    monkeypatch.setattr(decode.load("quest")[1], "check", check)
    with pytest.raises(RequestError, match=r"^headway\.decode\.budget: is odd") as caught:
        recipes.method({"budget": 701})
    assert caught.value.field == "headway.decode.budget"


def test_defaults_hold_what_is_always_read() -> None:
    class Small(BudgetSettings):
        method: str = "small"
        budget: int = 100

    with pytest.raises(ValueError, match="320 tokens"):
        Small()
    assert Small(sink_size=0, window_size=100).budget == 100
    assert issubclass(Small, DecodeSettings)
