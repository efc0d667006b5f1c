import pytest
from transformers import GenerationConfig
from transformers.utils import logging as transformers_logging

from headway.engine.config import ModelConfig
from headway.engine.loading import LoadedModel, load

from .models.families import save


@pytest.fixture(scope="session")
def load_family(tmp_path_factory):
    """`load_family(name)` → the family's tiny LoadedModel, loaded once from a saved checkpoint."""
    folder = tmp_path_factory.mktemp("families")
    loaded: dict[str, LoadedModel] = {}

    def get(family: str) -> LoadedModel:
        if family not in loaded:
            loaded[family] = load(ModelConfig(name=str(save(family, folder)), threads=1))
            loaded[family].model.generation_config = GenerationConfig()
        return loaded[family]

    transformers_logging.disable_progress_bar()
    return get
