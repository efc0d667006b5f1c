"""Tiny random models, one for each family that is served: built on the spot, always the same."""

from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

VOCAB = 128
BASE: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
    "tie_word_embeddings": False,
}
MOE: dict[str, Any] = {"num_experts_per_tok": 2, "moe_intermediate_size": 32}
MLA: dict[str, Any] = {
    "num_key_value_heads": 4,
    "kv_lora_rank": 16,
    "q_lora_rank": 24,
    "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 8,
    "v_head_dim": 16,
    "n_routed_experts": 4,
    "n_shared_experts": 1,
    "first_k_dense_replace": 1,
    "n_group": 2,
    "topk_group": 1,
    **MOE,
}
SLIDING = {"sliding_window": 8, "layer_types": ["sliding_attention", "full_attention"]}
LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "short_factor": [1.0] * 8,
    "long_factor": [1.0 + 0.5 * i for i in range(8)],
    "original_max_position_embeddings": 64,
}

FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "llama-llama3": (
        "llama",
        {
            "rope_parameters": {
                "rope_type": "llama3",
                "rope_theta": 10000.0,
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 64,
            }
        },
    ),
    "llama-yarn": (
        "llama",
        {
            "rope_parameters": {
                "rope_type": "yarn",
                "rope_theta": 10000.0,
                "factor": 4.0,
                "original_max_position_embeddings": 128,
            }
        },
    ),
    "llama-longrope": ("llama", {"rope_parameters": LONGROPE}),
    "llama-dynamic": (
        "llama",
        {
            "max_position_embeddings": 64,
            "rope_parameters": {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 4.0},
        },
    ),
    "qwen2": ("qwen2", {}),
    "qwen3": ("qwen3", {"head_dim": 32}),
    "qwen3-moe": ("qwen3_moe", {"head_dim": 16, "num_experts": 4, **MOE}),
    "mistral": ("mistral", {"sliding_window": 8}),
    "mixtral": ("mixtral", {"num_local_experts": 4, "num_experts_per_tok": 2}),
    "gemma2": (
        "gemma2",
        {"head_dim": 16, "attn_logit_softcapping": 5.0, "query_pre_attn_scalar": 32, **SLIDING},
    ),
    "gemma3": ("gemma3_text", {"head_dim": 16, "query_pre_attn_scalar": 32, **SLIDING}),
    "gemma3-longrope": (
        "gemma3_text",
        {
            "head_dim": 16,
            "rope_parameters": {
                "full_attention": LONGROPE,
                "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
            },
            **SLIDING,
        },
    ),
    "gemma3n": (
        "gemma3n_text",
        {
            "num_hidden_layers": 4,
            "head_dim": 16,
            "intermediate_size": 96,
            "vocab_size_per_layer_input": VOCAB,
            "hidden_size_per_layer_input": 16,
            "num_kv_shared_layers": 2,
            "altup_num_inputs": 2,
            "laurel_rank": 8,
            "activation_sparsity_pattern": [0.0] * 4,
            "sliding_window": 8,
            "layer_types": ["sliding_attention", "full_attention"] * 2,
        },
    ),
    "gemma4": (
        "gemma4_text",
        {
            "num_hidden_layers": 4,
            "head_dim": 16,
            "global_head_dim": 32,
            "vocab_size_per_layer_input": VOCAB,
            "hidden_size_per_layer_input": 16,
            "num_kv_shared_layers": 2,
            "sliding_window": 8,
            "layer_types": ["sliding_attention", "full_attention"] * 2,
        },
    ),
    "phi3": ("phi3", {}),
    "phi3-longrope": ("phi3", {"rope_parameters": LONGROPE, "original_max_position_embeddings": 64}),
    "smollm3": ("smollm3", {"no_rope_layers": [1, 0]}),
    "gpt-oss": ("gpt_oss", {"head_dim": 16, "num_local_experts": 4, "num_experts_per_tok": 2, **SLIDING}),
    "olmo2": ("olmo2", {}),
    "olmo3": ("olmo3", SLIDING),
    "glm4": ("glm4", {"head_dim": 16, "partial_rotary_factor": 0.5}),
    "granite": (
        "granite",
        {
            "attention_multiplier": 0.3,
            "logits_scaling": 2.0,
            "residual_multiplier": 0.8,
            "embedding_multiplier": 3.0,
        },
    ),
    "cohere2": ("cohere2", {"head_dim": 16, "logit_scale": 0.5, **SLIDING}),
    "deepseek-v3": ("deepseek_v3", MLA),
    "glm4-moe-lite": ("glm4_moe_lite", MLA),
    "deepseek-v2": ("deepseek_v2", {**MLA, "topk_method": "greedy"}),
    "minicpm3": ("minicpm3", {name: value for name, value in MLA.items() if "expert" not in name}),
    "nemotron": ("nemotron", {"head_dim": 16}),
    "stablelm": ("stablelm", {}),
    "exaone4": ("exaone4", {"sliding_window_pattern": "LG", **SLIDING}),
    "gpt2": ("gpt2", {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 512}),
    "gpt-neox": ("gpt_neox", {}),
    "hunyuan": ("hunyuan_v1_dense", {"head_dim": 16}),
    "opt": ("opt", {"ffn_dim": 96, "word_embed_proj_dim": 64, "dropout": 0.0}),
}


def build(family: str) -> PreTrainedModel:
    """The tiny float32 model of `family`, its weights wide enough that attention and logits matter."""
    model_type, settings = FAMILIES[family]
    config = AutoConfig.for_model(model_type, **{**BASE, **settings})
    torch.manual_seed(sorted(FAMILIES).index(family))
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation="eager")
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim >= 2:
                parameter.normal_(0.0, 0.15)
            else:
                parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval()


def save(family: str, folder: Path) -> Path:
    """Write the tiny model of `family` as a checkpoint and return its folder."""
    path = folder / family
    if not path.exists():
        build(family).save_pretrained(path)
    return path
