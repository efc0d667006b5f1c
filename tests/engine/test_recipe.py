"""The section `recipe`: what it serves, and how a wrong one is refused."""

from typing import Any

import pytest

from headway.engine.config import EngineConfig
from headway.engine.config_section import parse
from headway.engine.errors import ConfigError
from headway.engine.methods.combination import why_not
from headway.engine.methods.kind import DECODE, PREFILL
from headway.engine.recipe import RecipeConfig
from headway.engine.selection.settings import BudgetSettings, DecodeSettings

QUEST = {"method": "quest", "budget": 1024, "dense_below": 512}
STREAMING = {"method": "streaming", "dense_tail": 100}


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
        ({"prefill": {"method": "streamin"}}, ["recipe.prefill.method", "'streaming'"]),
        ({"prefill": {"method": "quest"}}, ["recipe.prefill.method", "'quest' is unknown", "streaming"]),
        (
            {"prefill": {"method": "streaming", "dense_tial": 1}},
            ["recipe.prefill.dense_tial", "'dense_tail'"],
        ),
        ({"prefill": {"method": "streaming", "dense_tail": -1}}, ["recipe.prefill.dense_tail", "0"]),
        ({"prefill": {"method": "streaming", "tile": 0}}, ["recipe.prefill.tile", "1"]),
        ({"prefill": {"method": "dense", "budget": 1}}, ["recipe.prefill.budget", "unknown key"]),
        ({"prefill": {"method": "xattention", "stride": 5}}, ["recipe.prefill: ", "stride must divide"]),
        ({"prefill": ["streaming"]}, ["recipe.prefill", "mapping"]),
        ({"prefil": {}}, ["recipe.prefil", "'prefill'"]),
        ({"layers": {"router": "r", "window": 1}}, ["recipe.layers.window", "'window_size'"]),
        ({"layers": {"router": "r", "window_size": 0}}, ["recipe.layers.window_size", "1"]),
        ({"layers": {"sink_size": 4}}, ["recipe.layers.router", "required"]),
        ({"layers": {"router": "r"}, "heads": {"profile": "p"}}, ["recipe.layers: ", "leave out one"]),
        ({"memory": {"streaming_heads": "drop"}}, ["recipe.memory.streaming_heads: ", "recipe.heads"]),
        ({"memory": {"streaming_heads": "lose"}}, ["recipe.memory.streaming_heads", "'keep' or 'drop'"]),
        (
            {"memory": {"streaming_heads": "drop"}, "heads": {"profile": "p", "question": "all"}},
            ["recipe.memory.streaming_heads: ", "heads.question: near"],
        ),
        ({"heads": {"profile": "p", "question": "some"}}, ["recipe.heads.question", "'near' or 'all'"]),
        ({"requests": {"methods": ["dens"]}}, ["recipe.requests.methods", "'dense'"]),
        ({"requests": {"prefill_methods": ["quest"]}}, ["recipe.requests.prefill_methods", "'quest'"]),
        ({"requests": {"prefil_methods": []}}, ["recipe.requests.prefil_methods", "'prefill_methods'"]),
        ({"requests": {"max_buget": 5}}, ["recipe.requests.max_buget", "'max_budget'"]),
        ({"requests": {"max_budget": 0}}, ["recipe.requests.max_budget"]),
        ({"decode": {"method": "h2o"}, "prefill": STREAMING}, ["recipe.prefill.method: ", "h2o", "dense"]),
        (
            {"decode": {"method": "snapkv", "observation": 101}, "prefill": STREAMING},
            ["recipe.prefill.dense_tail: ", "snapkv", "at least 101, not 100"],
        ),
    ],
)
def test_a_wrong_recipe_names_the_key(section: dict[str, Any], told: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(EngineConfig, {"recipe": section})
    assert all(part in str(caught.value) for part in told), caught.value


def test_every_wrong_key_of_a_recipe_is_named() -> None:
    section = {
        "decode": {"method": "quest", "budget": "x", "sink_sise": 1},
        "prefill": {"method": "streaming", "dense_tail": "x"},
    }
    with pytest.raises(ConfigError) as caught:
        parse(EngineConfig, {"recipe": section})
    assert {line.partition(":")[0] for line in str(caught.value).splitlines()} == {
        "recipe.decode.budget",
        "recipe.decode.sink_sise",
        "recipe.prefill.dense_tail",
    }


def test_a_recipe_passes_to_the_engines_process_unchanged() -> None:
    requests = {"methods": ["quest"], "prefill_methods": ["streaming"]}
    section = {"decode": QUEST, "prefill": STREAMING, "requests": requests}
    config = parse(EngineConfig, {"recipe": section})
    assert EngineConfig.model_validate_json(config.model_dump_json()) == config
    assert config.recipe.prefill.dense_tail == 100


@pytest.mark.parametrize("decode", DECODE.names())
@pytest.mark.parametrize("prefill", PREFILL.names())
def test_a_decode_method_that_watches_prompts_sees_dense_ones(decode: str, prefill: str) -> None:
    watching = DECODE.make(DECODE.defaults(decode))
    for tail in (0, watching.observes - 1, watching.observes, 10_000):
        if tail < 0:
            continue
        chosen = PREFILL.parse({"method": prefill, "dense_tail": tail})
        dense = prefill == "dense" or tail >= (10_001 if watching.sees_all else watching.observes)
        assert (why_not(watching, PREFILL.make(chosen)) is None) is dense
        try:
            RecipeConfig.model_validate({"decode": {"method": decode}, "prefill": chosen})
        except ValueError:
            assert not dense
        else:
            assert dense


def test_defaults_hold_what_is_always_read() -> None:
    class Small(BudgetSettings):
        method: str = "small"
        budget: int = 100

    with pytest.raises(ValueError, match="320 tokens"):
        Small()
    assert Small(sink_size=0, window_size=100).budget == 100
    assert issubclass(Small, DecodeSettings)
