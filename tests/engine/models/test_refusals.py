"""Models that would be served wrongly are refused, with the reason."""

import pytest
from transformers import AutoConfig, AutoModelForCausalLM

from headway.engine.config import ModelConfig
from headway.engine.errors import ModelRefused
from headway.engine.loading import load

from .families import BASE, MLA

REFUSED = {
    "falcon": ({}, "AttentionInterface"),
    "bloom": ({"n_head": 4, "n_layer": 2}, "AttentionInterface"),
    "lfm2": ({"layer_types": ["conv", "full_attention"]}, r"layers \[0\] of 2"),
    "mamba": ({}, r"layers \[0, 1\] of 2"),
    "llama4_text": (
        {
            "head_dim": 16,
            "attention_chunk_size": 16,
            "intermediate_size_mlp": 64,
            "num_local_experts": 2,
            "layer_types": ["chunked_attention", "full_attention"],
        },
        "layer 0 .*chunked",
    ),
    "deepseek_v32": ({**MLA, "index_topk": 8, "index_n_heads": 2, "index_head_dim": 16}, "indices.*DeepSeek"),
    "hrm_text": ({}, "layer 0 attends twice"),
}


@pytest.mark.parametrize("model_type", REFUSED)
def test_refused_with_the_reason(model_type, tmp_path):
    settings, reason = REFUSED[model_type]
    config = AutoConfig.for_model(model_type, **{**BASE, **settings})
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    with pytest.raises(ModelRefused, match=reason):
        load(ModelConfig(name=str(tmp_path)))
