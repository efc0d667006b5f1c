"""Configuration errors: each names the key, and the nearest valid one."""

import math

import pytest

from headway.engine.config import EngineConfig, ModelConfig
from headway.engine.config_section import load_yaml, parse
from headway.engine.errors import ConfigError


def test_nothing_given_is_all_defaults():
    assert parse(EngineConfig, {}) == EngineConfig()
    assert parse(EngineConfig, {"model": {"name": "x"}}).model == ModelConfig(name="x")


@pytest.mark.parametrize(
    ("data", "where", "nearest"),
    [
        ({"modle": {}}, "modle", "model"),
        ({"model": {"max_contxt": 4096}}, "model.max_contxt", "max_context"),
        ({"cache": {"pagesize": 64}}, "cache.pagesize", "page_size"),
        ({"scheduler": {"max_num_seqs": 3}}, "scheduler.max_num_seqs", "max_"),
        ({"limits": {"n": 3}}, "limits.n", "max_n"),
        ({"zzzz": 1}, "zzzz", ""),
    ],
)
def test_an_unknown_key_is_named_with_the_nearest_valid_one(data, where, nearest):
    with pytest.raises(ConfigError) as error:
        parse(EngineConfig, data)
    assert str(error.value).startswith(f"{where}: unknown key; did you mean '{nearest}")
    assert "Valid: " in str(error.value)


@pytest.mark.parametrize(
    ("data", "where"),
    [
        ({"model": 3}, "model"),
        ({"model": {"dtype": "int8"}}, "model.dtype"),
        ({"model": {"max_context": 0}}, "model.max_context"),
        ({"model": {"max_context": "many"}}, "model.max_context"),
        ({"model": {"rope_scaling": "yarn"}}, "model.rope_scaling"),
        ({"cache": {"page_size": 6.5}}, "cache.page_size"),
        ({"cache": {"memory_fraction": 1.5}}, "cache.memory_fraction"),
        ({"cache": {"memory_gib": math.inf}}, "cache.memory_gib"),
        ({"scheduler": {"ageing_tokens_per_second": math.nan}}, "scheduler.ageing_tokens_per_second"),
        ({"watchdog_seconds": -1}, "watchdog_seconds"),
    ],
)
def test_a_wrong_value_is_named(data, where):
    with pytest.raises(ConfigError) as error:
        parse(EngineConfig, data)
    assert str(error.value).startswith(f"{where}: ")


def test_page_size_must_be_a_power_of_two():
    with pytest.raises(ConfigError, match=r"^cache.page_size: must be a power of two \(got 48\)$"):
        parse(EngineConfig, {"cache": {"page_size": 48}})


def test_all_mistakes_are_told_at_once():
    with pytest.raises(ConfigError) as error:
        parse(EngineConfig, {"model": {"nam": "x", "threads": 0}, "cahce": {}})
    assert {line.partition(":")[0] for line in str(error.value).splitlines()} == {
        "model.nam",
        "model.threads",
        "cahce",
    }


@pytest.mark.parametrize(
    ("text", "complaint"),
    [("model: [", "not valid YAML"), ("- a\n- b", "must hold a mapping, not a list"), ("7", "not a int")],
)
def test_a_file_that_is_no_mapping_is_refused(tmp_path, text, complaint):
    path = tmp_path / "config.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=complaint):
        load_yaml(path)


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"cannot read .*No such file"):
        load_yaml(tmp_path / "none.yaml")


def test_an_empty_file_is_all_defaults(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text("# nothing\n")
    assert parse(EngineConfig, load_yaml(path)) == EngineConfig()
