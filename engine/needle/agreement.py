"""Share of equal verdicts, read densely and in linear time: `python -m headway.engine.needle.agreement`."""

import argparse
from pathlib import Path

import torch

from headway.engine.needle import WEIGHTS
from headway.engine.needle.coding import Coder
from headway.engine.needle.evaluate import TASKS, haystack
from headway.engine.needle.verdicts import dense, far, load


def main() -> None:
    """Command line."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    p.add_argument("--weights", type=Path, default=WEIGHTS, help="folder")
    p.add_argument("--lengths", type=int, nargs="+", default=[4096, 8192, 16384], help="tokens")
    p.add_argument("--tasks", nargs="+", default=["many_keys", "key_value", "some_keys"], choices=list(TASKS))
    p.add_argument("--haystacks", type=int, default=6, help="per task and length")
    p.add_argument("--questions", type=int, default=24, help="per haystack")
    p.add_argument("--far", type=int, nargs="+", default=[0, 2], help="layers that see all of a haystack")
    p.add_argument("--seed", type=int, default=1, help="of the haystacks")
    p.add_argument("--threads", type=int, default=2, help="of torch")
    args = p.parse_args()
    torch.set_num_threads(args.threads)
    model, coder = load(args.weights), Coder()
    densely, linearly = dense(model), far(model, args.far)
    for length in args.lengths:
        for task in args.tasks:
            verdicts: list[tuple[bool, bool]] = []
            for index in range(args.haystacks):
                text, tails = haystack(coder, task, length, index, args.questions, args.seed)
                verdicts += zip(densely(text, tails), linearly(text, tails), strict=True)
            n, same = len(verdicts), sum(a == b for a, b in verdicts)
            right = [sum(column) for column in zip(*verdicts, strict=True)]
            print(
                f"{length:7d} {task:10s} same {same} of {n}; right: dense {right[0]}, far {right[1]}",
                flush=True,
            )


if __name__ == "__main__":
    main()
