"""Tiny random models that have needle's tokenizer, and so its haystacks."""

import shutil
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from headway.engine.config import ModelConfig
from headway.engine.loaded import LoadedModel
from headway.engine.loading import load
from headway.engine.needle import WEIGHTS
from tests.engine.models.families import BASE, FAMILIES

VOCAB = 5302


def readable(family: str, folder: Path, **facts: object) -> LoadedModel:
    """The model of a family, with needle's vocabulary; `facts` go to its configuration."""
    model_type, settings = FAMILIES[family]
    config = AutoConfig.for_model(
        model_type, **{**BASE, **settings, "vocab_size": VOCAB, "max_position_embeddings": 2048, **facts}
    )
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim >= 2:
                parameter.normal_(0.0, 0.15)
    model.save_pretrained(folder)
    shutil.copy(WEIGHTS / "tokenizer.json", folder)
    return load(ModelConfig(name=str(folder), threads=1))
