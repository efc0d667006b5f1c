"""needle as a GGUF file, for peers that read nothing else; matrices in float16, as they ask."""

import json
from pathlib import Path

import numpy as np
from gguf import GGUFWriter, LlamaFileType, TokenType
from safetensors.numpy import load_file

from headway.engine.needle import WEIGHTS

IN_A_LAYER = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
BESIDE_LAYERS = {"embed_tokens": "token_embd", "norm": "output_norm"}


def write(path: Path) -> None:
    """Write model and vocabulary; token ids stay as they are."""
    config = json.loads((WEIGHTS / "config.json").read_text())
    writer = GGUFWriter(path, config["model_type"])
    writer.add_file_type(LlamaFileType.MOSTLY_F16)
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_key_length(config["head_dim"])
    writer.add_value_length(config["head_dim"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(config["rope_theta"])
    writer.add_bos_token_id(config["eos_token_id"])  # needle has none; OpenVINO asks for one
    writer.add_eos_token_id(config["eos_token_id"])
    writer.add_pad_token_id(config["pad_token_id"])
    _add_vocabulary(writer, config["vocab_size"])
    for name, tensor in load_file(WEIGHTS / "model.safetensors").items():
        writer.add_tensor(_named(name), tensor if tensor.ndim == 1 else tensor.astype(np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _add_vocabulary(writer: GGUFWriter, size: int) -> None:
    saved = json.loads((WEIGHTS / "tokenizer.json").read_text())
    tokens = [f"<|unused {token}|>" for token in range(size)]
    types = [TokenType.NORMAL] * size
    for text, token in saved["model"]["vocab"].items():
        tokens[token] = text
    for added in saved["added_tokens"]:
        tokens[added["id"]], types[added["id"]] = added["content"], TokenType.CONTROL
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("llama-bpe")
    writer.add_chat_template((WEIGHTS / "chat_template.jinja").read_text())
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    writer.add_token_merges([" ".join(pair) for pair in saved["model"]["merges"]])


def _named(name: str) -> str:
    """`model.layers.3.mlp.up_proj.weight` → `blk.3.ffn_up.weight`."""
    inner = name.removeprefix("model.").removesuffix(".weight")
    if inner in BESIDE_LAYERS:
        return f"{BESIDE_LAYERS[inner]}.weight"
    _, layer, part = inner.split(".", 2)
    return f"blk.{layer}.{IN_A_LAYER[part]}.weight"
