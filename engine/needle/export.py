"""Writes a checkpoint as a Hugging Face folder: `python -m headway.engine.needle.export CHECKPOINT`."""

import argparse
import json
import os
from pathlib import Path

import torch
from safetensors.torch import save_file

from headway.engine.needle import WEIGHTS
from headway.engine.needle.model import Shape


def shape_of(state: dict[str, torch.Tensor]) -> Shape:
    """Sizes read off the parameters."""
    vocab, hidden = state["embed_tokens.weight"].shape
    head_dim = state["layers.0.self_attn.q_norm.weight"].shape[0]
    return Shape(
        vocab_size=vocab,
        hidden_size=hidden,
        intermediate_size=state["layers.0.mlp.gate_proj.weight"].shape[0],
        num_hidden_layers=1 + max(int(n.split(".")[1]) for n in state if n.startswith("layers.")),
        num_attention_heads=state["layers.0.self_attn.q_proj.weight"].shape[0] // head_dim,
        num_key_value_heads=state["layers.0.self_attn.k_proj.weight"].shape[0] // head_dim,
        head_dim=head_dim,
    )


def export(
    state: dict[str, torch.Tensor], folder: Path = WEIGHTS, dtype: torch.dtype = torch.float32
) -> None:
    """Replaces config.json, generation_config.json and model.safetensors, each in one move."""
    folder.mkdir(parents=True, exist_ok=True)
    config = {**shape_of(state).config(), "dtype": str(dtype).removeprefix("torch.")}
    generation = {"do_sample": False, "eos_token_id": 1, "pad_token_id": 0, "max_new_tokens": 128}
    for name, content in (("config.json", config), ("generation_config.json", generation)):
        (folder / f"{name}.tmp").write_text(json.dumps(content, indent=2) + "\n")
        os.replace(folder / f"{name}.tmp", folder / name)
    tensors = {f"model.{name}": t.to(dtype).contiguous() for name, t in state.items()}
    save_file(tensors, folder / "model.safetensors.tmp", metadata={"format": "pt"})
    (folder / "model.safetensors.tmp").chmod(0o644)
    os.replace(folder / "model.safetensors.tmp", folder / "model.safetensors")


def main() -> None:
    """Command line."""
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument("checkpoint", type=Path)
    p.add_argument("--folder", type=Path, default=WEIGHTS)
    p.add_argument("--dtype", default="float32", choices=("float32", "bfloat16", "float16"))
    args = p.parse_args()
    state = torch.load(args.checkpoint, weights_only=True)["model"]
    export(state, args.folder, getattr(torch, args.dtype))


if __name__ == "__main__":
    main()
