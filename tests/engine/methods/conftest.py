import pytest
from transformers import GenerationConfig
from transformers.utils import logging as transformers_logging

from headway.engine.config import ModelConfig
from headway.engine.loading import LoadedModel, load
from tests.engine.models.families import save


@pytest.fixture(scope="session")
def load_family(tmp_path_factory):
    """`load_family(name)` → the family's tiny LoadedModel, loaded once."""
    folder = tmp_path_factory.mktemp("families")
    loaded: dict[str, LoadedModel] = {}

    def get(family: str) -> LoadedModel:
        if family not in loaded:
            loaded[family] = load(ModelConfig(name=str(save(family, folder)), threads=1))
            loaded[family].model.generation_config = GenerationConfig()
        return loaded[family]

    transformers_logging.disable_progress_bar()
    return get


@pytest.fixture(scope="session")
def gqa(load_family):
    """Two layers, four query heads over two KV heads of size 16, rotary embedding in halves."""
    return load_family("llama")
