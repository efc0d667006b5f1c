"""Blends two checkpoints of one descent: `python -m headway.engine.needle.blend OLD NEW BLEND --share 0.75`.

What a run has learned stays, and much of what it has forgotten comes back (WiSE-FT, arXiv 2109.01903).
"""

import argparse
from pathlib import Path

import torch
from torch import Tensor


def blend(old: dict[str, Tensor], new: dict[str, Tensor], share: float) -> dict[str, Tensor]:
    """Every weight as `share` of the way from `old` to `new`.

    Raises:
        ValueError: the two differ in their shape, or the share is not between 0 and 1.
    """
    if not 0 <= share <= 1:
        raise ValueError(f"share: {share} is not between 0 and 1")
    shapes = [{name: tensor.shape for name, tensor in state.items()} for state in (old, new)]
    if shapes[0] != shapes[1]:
        raise ValueError("the checkpoints are of models of different shapes")
    return {name: (1 - share) * old[name] + share * new[name] for name in old}


def main() -> None:
    """Command line."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("old", type=Path)
    p.add_argument("new", type=Path)
    p.add_argument("blend", type=Path)
    p.add_argument("--share", type=float, default=0.5, help="of NEW, 0 to 1")
    args = p.parse_args()
    old, new = (torch.load(path, weights_only=True) for path in (args.old, args.new))
    kept = {name: new[name] for name in ("step", "tokens")}
    torch.save({"model": blend(old["model"], new["model"], args.share), **kept}, args.blend)


if __name__ == "__main__":
    main()
