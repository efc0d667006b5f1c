"""Retrieval scores of all heads, and what their ablation does: `python -m headway.engine.needle.heads`.

Score (Wu et al., "Retrieval Head Mechanistically Explains Long-Context Factuality"): the share of generated
value tokens at which the head's arg-max lies on the same token inside the needle.
"""

import argparse
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from headway.engine.needle import WEIGHTS
from headway.engine.needle.coding import Coder
from headway.engine.needle.evaluate import exact, haystack, load
from headway.engine.needle.tasks import Tail

Head = tuple[int, int]


def find(needle: list[int], ids: list[int]) -> int:
    """Where `needle` starts in `ids`, or -1."""
    n = len(needle)
    return next((i for i in range(len(ids) - n + 1) if ids[i : i + n] == needle), -1)


@torch.inference_mode()
def scores(model: PreTrainedModel, haystacks: list[tuple[list[int], list[Tail]]]) -> Tensor:
    """Retrieval scores [layers, heads] over the values of all questions."""
    total = torch.zeros(model.config.num_hidden_layers, model.config.num_attention_heads)
    steps = 0
    for prefix, tails in haystacks:
        cache = DynamicCache(config=model.config)
        model.set_attn_implementation("sdpa")
        model(torch.tensor([prefix]), past_key_values=cache, logits_to_keep=1)
        # Only eager attention returns its weights; the few rows of the question keep that small.
        model.set_attn_implementation("eager")
        for ask, answer in tails:
            value = answer[:-1]
            at = find(value, prefix)
            if at < 0:
                continue
            out = model(torch.tensor([ask + answer]), past_key_values=cache, output_attentions=True)
            places = torch.stack([layer[0, :, len(ask) - 1 : -2].argmax(-1) for layer in out.attentions])
            total += (places == torch.arange(at, at + len(value))).sum(-1)
            steps += len(value)
            cache.crop(-len(ask) - len(answer))
    model.set_attn_implementation("sdpa")
    return total / max(steps, 1)


@contextmanager
def without(model: PreTrainedModel, heads: list[Head]) -> Iterator[None]:
    """Zeroes the outputs of some heads while the context is open."""
    size, hooks = model.config.head_dim, []
    for idx in {layer for layer, _ in heads}:
        mine = [h for layer, h in heads if layer == idx]

        def zero(_: torch.nn.Module, inputs: tuple[Tensor], mine: list[int] = mine) -> tuple[Tensor]:
            x = inputs[0].clone()
            for h in mine:
                x[..., h * size : (h + 1) * size] = 0
            return (x,)

        hooks.append(model.model.layers[idx].self_attn.o_proj.register_forward_pre_hook(zero))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def controls(chosen: list[Head], heads_per_layer: int, rng: Random) -> list[Head]:
    """As many other heads of the same layers, or all others where there are fewer."""
    out: list[Head] = []
    for idx in sorted({layer for layer, _ in chosen}):
        mine = [h for layer, h in chosen if layer == idx]
        others = [h for h in range(heads_per_layer) if h not in mine]
        out += [(idx, h) for h in rng.sample(others, min(len(mine), len(others)))]
    return out


def accuracy(model: PreTrainedModel, haystacks: list[tuple[list[int], list[Tail]]]) -> float:
    """Exact match over all questions."""
    results = [ok for prefix, tails in haystacks for ok in exact(model, prefix, tails)]
    return sum(results) / len(results)


def heat_map(table: Tensor, path: Path) -> None:
    """Draws scores [layers, heads]."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(5, 2.8), layout="constrained")
    image = axes.imshow(table, vmin=0, vmax=1, cmap="viridis")
    for (layer, head), score in (
        (i, table[i].item())
        for i in torch.cartesian_prod(torch.arange(table.shape[0]), torch.arange(table.shape[1])).tolist()
        for i in [tuple(i)]
    ):
        axes.text(
            head, layer, f"{score:.2f}", ha="center", va="center", color="w" if score < 0.6 else "k", size=7
        )
    axes.set(xlabel="query head", ylabel="layer", yticks=range(table.shape[0]), title="retrieval score")
    figure.colorbar(image)
    figure.savefig(path, dpi=120)


def main() -> None:
    """Command line."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--weights", type=Path, default=WEIGHTS)
    p.add_argument("--length", type=int, default=2048)
    p.add_argument("--haystacks", type=int, default=4, help="per task")
    p.add_argument("--questions", type=int, default=16)
    p.add_argument("--tasks", nargs="+", default=["single", "many_keys", "key_value"])
    p.add_argument("--threshold", type=float, default=0.5, help="heads above it are ablated together")
    p.add_argument("--seed", type=int, default=2)
    p.add_argument("--threads", type=int, default=2)
    p.add_argument("--json", type=Path)
    p.add_argument("--png", type=Path)
    args = p.parse_args()
    torch.set_num_threads(args.threads)
    model, coder, rng = load(args.weights), Coder(), Random(args.seed)
    data = [
        haystack(coder, task, args.length, i, args.questions, args.seed)
        for task in args.tasks
        for i in range(args.haystacks)
    ]
    table = scores(model, data)
    for idx, row in enumerate(table.tolist()):
        print(f"layer {idx}: " + " ".join(f"{s:.2f}" for s in row))
    flat = [(table[i, h].item(), (i, h)) for i in range(table.shape[0]) for h in range(table.shape[1])]
    top = [head for score, head in sorted(flat, reverse=True) if score > args.threshold]
    sets = {"none": [], "retrieval heads": top}
    for i in range(3):
        sets[f"other heads of the same layers, draw {i + 1}"] = controls(top, table.shape[1], rng)
    results = {}
    for name, heads in sets.items():
        with without(model, heads):
            results[name] = {"heads": heads, "exact": round(accuracy(model, data), 3)}
        print(f"without {name} {heads}: {results[name]['exact']}")
    if args.json:
        args.json.write_text(
            json.dumps({"length": args.length, "scores": table.tolist(), "ablation": results})
        )
    if args.png:
        heat_map(table, args.png)


if __name__ == "__main__":
    main()
