"""The files in configs/ are valid, and default.yaml says what the defaults are."""

from pathlib import Path

import pytest
from transformers import AutoConfig

from headway.engine.config import EngineConfig
from headway.engine.config_section import load_yaml
from headway.engine.rope_settings import context_limit, override
from headway.server.settings import ServerConfig, Settings, load_settings

CONFIGS = Path(__file__).parents[2] / "configs"
MODELS = sorted((CONFIGS / "models").glob("*.yaml"))


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


def test_there_are_files_for_models():
    assert len(MODELS) > 8
