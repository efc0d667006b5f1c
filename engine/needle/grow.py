"""Deepens a checkpoint and changes nothing: `python -m headway.engine.needle.grow OLD NEW --after 0`.

After each named layer comes a copy of it whose two output projections are zero: it adds nothing yet, but its
attention already looks where its original looks, and training gives it work of its own.
"""

import argparse
from pathlib import Path

import torch
from torch import Tensor

OUTPUTS = ("self_attn.o_proj.weight", "mlp.down_proj.weight")


def grow(state: dict[str, Tensor], after: list[int], sharper: dict[int, float]) -> dict[str, Tensor]:
    """`state` with a silent copy behind each of the layers `after`.

    Args:
        sharper: by layer, what its attention logits (and its copy's) are multiplied by. A long haystack has
            more distractors than training; colder attention lowers what they draw from the needle.
    """
    layers = 1 + max(int(name.split(".")[1]) for name in state if name.startswith("layers."))
    new = {name: tensor for name, tensor in state.items() if not name.startswith("layers.")}
    at = 0
    for layer in range(layers):
        for silent in [False, True] if layer in after else [False]:
            for name, tensor in state.items():
                if name.startswith(head := f"layers.{layer}."):
                    part = name.removeprefix(head)
                    factor = 0.0 if silent and part in OUTPUTS else 1.0
                    if part == "self_attn.q_norm.weight":
                        factor = sharper.get(layer, 1.0)
                    new[f"layers.{at}.{part}"] = tensor * factor
            at += 1
    return new


def main() -> None:
    """Command line."""
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument("old", type=Path)
    p.add_argument("new", type=Path)
    p.add_argument("--after", type=int, nargs="*", default=[], help="layers that get a copy behind them")
    p.add_argument(
        "--sharper", nargs="*", default=[], metavar="LAYER:FACTOR", help="factors of attention logits"
    )
    args = p.parse_args()
    state = torch.load(args.old, weights_only=True)
    kept = {name: state[name] for name in ("step", "tokens")}
    sharper = {int(layer): float(factor) for layer, factor in (item.split(":") for item in args.sharper)}
    torch.save({"model": grow(state["model"], args.after, sharper), **kept}, args.new)


if __name__ == "__main__":
    main()
