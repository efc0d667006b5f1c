"""Offers: what a request may choose of a configuration, and how the rest is refused."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headway.engine.config import EngineConfig
from headway.engine.config_section import parse
from headway.engine.errors import RequestError
from headway.engine.methods.kind import DECODE, PREFILL, Kind
from headway.engine.offer import Offer
from headway.engine.offers import Offers
from headway.engine.selection.prefill_settings import PrefillSettings
from headway.engine.selection.settings import MOST, BudgetSettings, DecodeSettings, of_requests

QUEST = {"method": "quest", "budget": 1024, "dense_below": 512}
STREAMING = {"method": "streaming", "dense_below": 512}
EVERY_METHOD = [(kind, name) for kind in (DECODE, PREFILL) for name in kind.names()]


def offers(
    decode: dict[str, Any] | None = None, prefill: dict[str, Any] | None = None, **requests: Any
) -> Offers:
    chosen = {"decode": decode, "prefill": prefill, "requests": requests}
    given = {key: value for key, value in chosen.items() if value is not None}
    return Offers(parse(EngineConfig, {"recipe": given}).recipe)


def offer(kind: Kind[Any, Any], default: dict[str, Any] | None = None, **requests: Any) -> Offer[Any, Any]:
    made: Offer[Any, Any] = getattr(offers(**{kind.name: default}, **requests), kind.name)
    return made


def refused(
    offers: Offers, decode: dict[str, Any] | None = None, prefill: dict[str, Any] | None = None
) -> RequestError:
    with pytest.raises(RequestError) as caught:
        offers.settings(decode, prefill)
    assert caught.value.field is not None
    assert str(caught.value).startswith(caught.value.field)
    assert len(str(caught.value)) < 500
    return caught.value


@pytest.mark.parametrize(("kind", "name"), EVERY_METHOD)
def test_every_method_is_served_by_its_name_alone(kind: Kind[Any, Any], name: str) -> None:
    made = offer(kind, {"method": name})
    assert made.settings(None) == made.default == made.settings({}) == made.settings({"method": name})
    assert made.methods == tuple(sorted({name, "dense"}))
    assert offer(kind, **{kind.offered: [name]}).settings({"method": name}) == made.default


def test_a_request_changes_what_it_names_and_nothing_else() -> None:
    both = offers(QUEST, STREAMING, max_fraction=1)
    decode, prefill = both.settings({"budget": 700, "fraction": 1}, {"dense_tail": 7})
    assert decode == both.decode.default.model_copy(update={"budget": 700, "fraction": 1.0})
    assert prefill == both.prefill.default.model_copy(update={"dense_tail": 7})
    assert both.settings({"method": "dense"}, None)[1] is both.prefill.default
    assert both.settings(None, {"method": "dense"})[1].method == "dense"


@pytest.mark.parametrize(("kind", "name"), [(DECODE, "quest"), (PREFILL, "streaming")])
def test_only_what_is_offered_can_be_chosen(kind: Kind[Any, Any], name: str) -> None:
    error = refused(offers(), **{kind.name: {"method": name}})
    assert error.field == f"headway.{kind.name}.method"
    assert f"recipe.requests.{kind.offered} " in str(error)
    assert offer(kind, **{kind.offered: [name]}).settings({"method": name}).method == name
    assert offer(kind, {"method": name}, **{kind.offered: []}).methods == ("dense", name)


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
def test_a_wrong_decode_choice_names_the_field(choice: dict[str, Any], field: str, told: str) -> None:
    error = refused(offers(QUEST), choice)
    assert error.field == f"headway.decode.{field}"
    assert told in str(error)


@pytest.mark.parametrize(
    ("choice", "field", "told"),
    [
        ({"method": "steaming"}, "method", "'streaming'"),
        ({"method": "quest"}, "method", "dense, streaming"),
        ({"dense_tial": 3}, "dense_tial", "'dense_tail'"),
        ({"method": "dense", "budget": 3}, "budget", "dense"),
        ({"dense_tail": -1}, "dense_tail", "0"),
        ({"dense_tail": "5"}, "dense_tail", "integer"),
        ({"dense_tail": True}, "dense_tail", "integer"),
        ({"dense_tail": 10**30}, "dense_tail", str(MOST)),
        ({"window_size": 0.5}, "window_size", "integer"),
        ({"tile": 64}, "tile", "only the server's configuration"),
    ],
)
def test_a_wrong_prefill_choice_names_the_field(choice: dict[str, Any], field: str, told: str) -> None:
    error = refused(offers(QUEST, STREAMING), None, choice)
    assert error.field == f"headway.prefill.{field}"
    assert told in str(error)


def test_the_servers_own_budget_is_always_allowed() -> None:
    made = offers(QUEST, max_budget=400)
    assert made.settings({"dense_below": 0}, None)[0] == made.decode.default.model_copy(
        update={"dense_below": 0}
    )
    assert "1024" in str(refused(made, {"budget": 1025}))


def test_the_cap_holds_for_a_budget_as_a_share_of_the_context() -> None:
    made = offers(QUEST, max_fraction=0.3)
    assert made.settings({"fraction": 0.3}, None)[0].method == "quest"
    error = refused(made, {"fraction": 0.31})
    assert error.field == "headway.decode.fraction"
    assert "at most 0.3 here, not 0.31" in str(error)
    own = offers(QUEST | {"fraction": 0.5}, max_fraction=0.3)
    assert own.settings({"budget": 700}, None)[0].fraction == 0.5
    assert "at most 0.5 here" in str(refused(own, {"fraction": 0.51}))


@pytest.mark.parametrize(("name", "budget"), [("tokenselect", "budget"), ("flexprefill", "max_budget")])
def test_the_cap_holds_for_budgets_of_prefill_too(name: str, budget: str) -> None:
    own = getattr(PREFILL.defaults(name), budget)
    capped = offers(None, {"method": name}, max_budget=1)
    assert capped.settings(None, {"dense_tail": 1})[1].method == name
    error = refused(capped, None, {budget: own + 1})
    assert error.field == f"headway.prefill.{budget}"
    assert f"at most {own} here" in str(error)


def test_what_does_not_fit_inside_a_choice_names_the_choice() -> None:
    error = refused(offers(None, {"method": "flexprefill"}), None, {"max_budget": 100})
    assert error.field == "headway.prefill"
    assert "max_budget must be at least min_budget" in str(error)


def test_a_request_needs_no_sidecar_that_is_not_kept() -> None:
    error = refused(offers(QUEST), {"unit": 32})
    assert error.field == "headway.decode"
    assert "bounds" in str(error)


def test_what_both_kinds_keep_is_kept_together() -> None:
    both = offers({"method": "quest"}, methods=["loki"], prefill_methods=PREFILL.names())
    assert both.sidecars == both.decode.sidecars | both.prefill.sidecars
    assert {sidecar.kind for sidecar in both.decode.sidecars} == {"bounds", "low_rank"}


def test_what_does_not_fit_together_is_refused() -> None:
    made = offers(QUEST, methods=["h2o", "snapkv"], prefill_methods=["streaming"])
    streaming = {"method": "streaming"}
    assert refused(made, {"method": "h2o"}, streaming).field == "headway.prefill.method"
    assert made.settings({"method": "h2o"}, None)[0].method == "h2o"
    assert made.settings({"method": "snapkv"}, streaming)[1].method == "streaming"
    error = refused(made, {"method": "snapkv"}, streaming | {"dense_tail": 31})
    assert error.field == "headway.prefill.dense_tail"
    assert "at least 32, not 31" in str(error)
    assert refused(made, {"method": "snapkv", "observation": 65}, streaming).field == error.field
    # The server's own counts where the request chooses the other kind only.
    own = offers(None, STREAMING, methods=["h2o"])
    assert refused(own, {"method": "h2o"}).field == "headway.prefill.method"
    assert own.settings({"method": "h2o"}, {"method": "dense"})[0].method == "h2o"


VALUES = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5), st.lists(st.none())
)
DECODE_KEYS = st.sampled_from(["method", "budget", "fraction", "unit", "mass", "window_size", "x"])
PREFILL_KEYS = st.sampled_from(["method", "tile", "dense_tail", "dense_below", "window_size", "x"])


@given(st.dictionaries(DECODE_KEYS, VALUES), st.dictionaries(PREFILL_KEYS, VALUES))
@settings(deadline=None)
def test_whatever_is_chosen_is_served_within_the_caps_or_refused(
    decode: dict[str, Any], prefill: dict[str, Any]
) -> None:
    made = offers(QUEST, STREAMING, max_budget=2000)
    for kind, choice in ((made.decode, decode), (made.prefill, prefill)):
        try:
            chosen: DecodeSettings | PrefillSettings = kind.settings(choice)
        except RequestError:
            continue
        assert chosen.method in kind.methods
        assert not isinstance(chosen, BudgetSettings) or chosen.budget <= 2000
        assert not isinstance(chosen, BudgetSettings) or (chosen.fraction or 0) <= 0.25
        assert all(getattr(chosen, name) == value for name, value in choice.items())


@pytest.mark.parametrize(("kind", "name"), EVERY_METHOD)
def test_requests_choose_numbers_switches_and_words_only(kind: Kind[Any, Any], name: str) -> None:
    schema, _ = kind.load(name)
    fixed = set(schema.model_fields) - set(of_requests(schema))
    assert ("tile" in fixed) is (kind is PREFILL)
    properties = schema.model_json_schema()["properties"]
    for key in of_requests(schema):
        kinds = [properties[key], *properties[key].get("anyOf", [])]
        free = [kind for kind in kinds if kind.get("type") in ("string", "array", "object")]
        assert all("enum" in kind or "const" in kind for kind in free), key
    made = offers(**{kind.name: {"method": name}})
    for key in fixed:
        error = refused(made, **{kind.name: {key: "/etc/passwd"}})
        assert "only the server's configuration" in str(error)
