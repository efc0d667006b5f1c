"""Deepens a checkpoint without changing what it computes: `python -m headway.engine.needle.grow OLD NEW 0 1`.

After each named layer comes a copy of it whose two output projections are zero: it adds nothing yet, but its
attention already looks where its original looks, and training gives it work of its own.
"""

import argparse
from pathlib import Path

import torch
from torch import Tensor

OUTPUTS = ("self_attn.o_proj.weight", "mlp.down_proj.weight")


def grow(state: dict[str, Tensor], after: list[int], sharpen: float = 1.0) -> dict[str, Tensor]:
    """`state` with a silent copy behind each of the layers `after`, whose logits `sharpen` multiplies."""
    layers = 1 + max(int(name.split(".")[1]) for name in state if name.startswith("layers."))
    new = {name: tensor for name, tensor in state.items() if not name.startswith("layers.")}
    at = 0
    for layer in range(layers):
        for silent in [False, True] if layer in after else [False]:
            for name, tensor in state.items():
                if name.startswith(head := f"layers.{layer}."):
                    part = name.removeprefix(head)
                    factor = 0.0 if silent and part in OUTPUTS else 1.0
                    if layer in after and part == "self_attn.q_norm.weight":
                        factor = sharpen
                    new[f"layers.{at}.{part}"] = tensor * factor
            at += 1
    return new


def main() -> None:
    """Command line."""
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument("old", type=Path)
    p.add_argument("new", type=Path)
    p.add_argument("after", type=int, nargs="+", help="layers that get a copy behind them")
    p.add_argument("--sharpen", type=float, default=1.0, help="factor of these layers' attention logits")
    args = p.parse_args()
    state = torch.load(args.old, weights_only=True)
    kept = {name: state[name] for name in ("step", "tokens")}
    torch.save({"model": grow(state["model"], args.after, args.sharpen), **kept}, args.new)


if __name__ == "__main__":
    main()
