"""The files in configs/ are valid, and default.yaml says what the defaults are."""

import re
from pathlib import Path

import pytest
from transformers import AutoConfig

from headway.engine.catalogue import SHAPE
from headway.engine.config import EngineConfig
from headway.engine.config_section import load_yaml
from headway.engine.methods.kind import DECODE, PREFILL
from headway.engine.offers import Offers
from headway.engine.recipes import Recipes
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
    config = load_settings(path, environment={}).engine
    offers = Offers(config.recipe)
    assert len(offers.decode.methods) + len(offers.prefill.methods) > 2
    room = config.scheduler.max_step_tokens - config.scheduler.max_running
    assert Recipes(config.recipe, SHAPE, config.cache.page_size, room).sidecars == offers.sidecars


@pytest.mark.parametrize("name", ["recipes", "configuration"])
def test_what_a_document_shows_is_a_valid_file(name, tmp_path):
    text = (CONFIGS.parent / "docs" / f"{name}.md").read_text(encoding="utf-8")
    examples = re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)
    assert examples
    for example in examples:
        (tmp_path / "headway.yaml").write_text(example)
        load_settings(tmp_path / "headway.yaml", environment={})


def test_the_document_of_recipes_knows_every_prefill_method():
    text = (CONFIGS.parent / "docs" / "recipes.md").read_text(encoding="utf-8")
    told = dict(re.findall(r"^\| `(\w+)` \| .* \| (row-local|prompt-global) \|$", text, re.MULTILINE))
    kinds = {
        name: "row-local" if PREFILL.load(name)[1].row_local else "prompt-global" for name in PREFILL.names()
    }
    assert told == {name: kind for name, kind in kinds.items() if name != "dense"}
    together = text[text.index("### Together") : text.index("## Examples")]
    methods = {name: DECODE.make(DECODE.defaults(name)) for name in DECODE.names()}
    watching = {name for name, method in methods.items() if method.sees_all or method.observes}
    assert (
        set(re.findall(r"`(\w+)`", "".join(re.findall(r"^\| (`.*?) \|", together, re.MULTILINE)))) == watching
    )


def test_there_are_files_for_models_and_recipes():
    assert len(MODELS) > 8
    assert len(RECIPES) > 3
