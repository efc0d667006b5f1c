"""The files in configs/ are valid, and default.yaml says what the defaults are."""

import re
from pathlib import Path

import pytest
from transformers import AutoConfig

from headway.engine.config import EngineConfig
from headway.engine.config_section import load_yaml
from headway.engine.recipe import Offer
from headway.engine.rope_settings import context_limit, override
from headway.server.settings import ServerConfig, Settings, load_settings

CONFIGS = Path(__file__).parents[2] / "configs"
MODELS = sorted((CONFIGS / "models").glob("*.yaml"))
RECIPES = sorted((CONFIGS / "recipes").glob("*.yaml"))


def test_default_yaml_holds_every_key_with_its_default():
    path = CONFIGS / "default.yaml"
    assert load_settings(path, environment={}) == Settings(EngineConfig(), ServerConfig())
    written = load_yaml(path)
    assert written.pop("server").keys() == ServerConfig.model_fields.keys()
    assert written == EngineConfig().model_dump()


@pytest.mark.parametrize("path", MODELS, ids=lambda path: path.stem)
def test_a_models_file_is_valid(path):
    model = load_settings(path, environment={}).engine.model
    assert "/" in model.name
    assert model.max_context is not None
    if model.rope_scaling:
        config = AutoConfig.for_model(path.stem.partition("-")[0])
        override(config, model.rope_scaling)
        assert context_limit(config) == model.max_context


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipes_file_says_what_is_read(path):
    offer = Offer(load_settings(path, environment={}).engine.recipe)
    assert len(offer.methods) > 1


@pytest.mark.parametrize("name", ["recipes", "configuration"])
def test_what_a_document_shows_is_a_valid_file(name, tmp_path):
    text = (CONFIGS.parent / "docs" / f"{name}.md").read_text(encoding="utf-8")
    examples = re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)
    assert examples
    for example in examples:
        (tmp_path / "headway.yaml").write_text(example)
        load_settings(tmp_path / "headway.yaml", environment={})


def test_there_are_files_for_models_and_recipes():
    assert len(MODELS) > 8
    assert len(RECIPES) > 3
