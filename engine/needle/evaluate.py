"""Exact match by task and length: `python -m headway.engine.needle.evaluate --json FILE`.

Asks about 200 questions a cell, about as many haystacks as a number of tokens makes: facts and questions of
one haystack are worded alike, so many haystacks tell more than many questions. Short haystacks are read
densely, long ones in linear time. Cells that FILE holds are not asked again: just repeat a command that was
interrupted. It is of one subject, weights and a way of reading, and refused for another.
"""

import argparse
import hashlib
import math
import time
from dataclasses import replace
from itertools import chain, pairwise, permutations
from pathlib import Path
from random import Random

import torch
from torch import Tensor

from headway.engine.needle import WEIGHTS
from headway.engine.needle.coding import Coder
from headway.engine.needle.scores import Score, append, saved, tables
from headway.engine.needle.tasks import Spec, Tail, make, split
from headway.engine.needle.verdicts import Judge, dense, far, load

TASKS: dict[str, list[Spec]] = {
    "single": [
        Spec(keys=k, needles="sentence", filler=f, separator=" ", count=1)
        for k, f in (("noun", "noise"), ("pair", "prose"), ("noun", "english"), ("hyphen", "prose"))
    ],
    "many_keys": [
        Spec(keys="pair", needles="sentence", separator="\n"),
        Spec(keys="hyphen", needles="sentence", separator=" "),
    ],
    "key_value": [Spec(keys="noun", needles="line", filler="prose")],
    "four_keys": [
        Spec(keys="pair", needles="sentence", filler=f, separator=" ", count=4) for f in ("prose", "english")
    ],
    "some_keys": [
        Spec(keys="pair", needles="sentence", filler=f, separator=" ", count=64) for f in ("prose", "english")
    ],
    "many_values": [
        Spec(keys="noun", needles="sentence", filler="prose", separator=" ", count=24, values_per_key=n)
        for n in (2, 4)
    ],
    "many_queries": [
        Spec(keys="noun", needles="sentence", filler="prose", separator=" ", density=0.1, queries=n)
        for n in (2, 4)
    ],
    "names": [Spec(keys="name", needles="sentence", filler="prose", separator=" ", density=0.3)],
    "uuid": [Spec(keys="uuid", needles="sentence")],
    **{f"tracking_{n}": [Spec(hops=n, count=4, filler="noise")] for n in (1, 2, 4)},
}


def spec_of(task: str, index: int) -> Spec:
    """What haystack `index` of a task is made by: its kinds take turns."""
    return TASKS[task][index % len(TASKS[task])]


def haystack(
    coder: Coder, task: str, length: int, index: int, questions: int, seed: int
) -> tuple[list[int], list[Tail]]:
    """Haystack `index` of a task: common prefix and (question, answer) tails, within `length` tokens."""
    rng = Random(f"needle evaluation {seed} {task} {length} {index}")
    spec = replace(spec_of(task, index), questions=questions)
    sample = make(rng, coder, length, spec)
    return split(coder, sample, sample.questions[:questions])


def depth(haystack: Tensor, value: list[int]) -> float | None:
    """Where in the ids of a haystack those of a value stand, 0 to 1; None where they do not, or not once."""
    starts = len(haystack) - len(value) + 1
    same = torch.stack([haystack[i : i + starts] == token for i, token in enumerate(value)])
    found = same.all(0).nonzero()
    return found.item() / len(haystack) if len(found) == 1 else None


def orders(coder: Coder, answer: list[int]) -> list[list[int]]:
    """All other orders of an answer's lines, in ids with the end token."""
    (line_end,) = coder.ids(["\n"])
    *said, end = answer
    ends = [place + 1 for place, token in enumerate(said) if token == line_end]
    lines = [tuple(said[start:stop]) for start, stop in pairwise([0, *ends])]
    return [[*chain(*order), end] for order in set(permutations(lines)) - {tuple(lines)}]


def plan(length: int, questions: int, tokens: int, least: int) -> tuple[int, int]:
    """How many haystacks of one length to read, and how many questions to ask about each.

    Args:
        questions: wanted in all.
        tokens: that reading may cost in all, unless even the least haystacks cost more.
        least: haystacks, whatever they cost.
    """
    haystacks = min(questions, max(least, tokens // length))
    return haystacks, math.ceil(questions / haystacks)


def evaluate(
    judge: Judge, coder: Coder, task: str, length: int, haystacks: int, questions: int, seed: int
) -> Score:
    """Scores one task at one length; questions: about each haystack, where it holds as many facts."""
    score, begin = Score(task, length), time.time()
    for index in range(haystacks):
        prefix, tails = haystack(coder, task, length, index, questions, seed)
        ids = torch.tensor(prefix)
        verdicts = judge(prefix, tails)
        if spec_of(task, index).values_per_key > 1:
            verdicts = _in_any_order(judge, coder, prefix, tails, verdicts)
        for right, (_, answer) in zip(verdicts, tails, strict=True):
            score.count(right, depth(ids, answer[:-1]))
        score.haystacks += 1
    score.seconds = round(time.time() - begin, 1)
    return score


def _in_any_order(
    judge: Judge, coder: Coder, prefix: list[int], tails: list[Tail], verdicts: list[bool]
) -> list[bool]:
    wrong = [row for row, right in enumerate(verdicts) if not right]
    others = [(row, (tails[row][0], other)) for row in wrong for other in orders(coder, tails[row][1])]
    right = judge(prefix, [tail for _, tail in others]) if others else []
    found = {row for (row, _), one in zip(others, right, strict=True) if one}
    return [one or row in found for row, one in enumerate(verdicts)]


def subject(weights: Path, far_layers: list[int], dense_below: int) -> str:
    """Weights and how they read haystacks, in a word."""
    digest = hashlib.blake2b((weights / "model.safetensors").read_bytes(), digest_size=8).hexdigest()
    return f"{digest}, dense below {dense_below}, then far in {' '.join(map(str, far_layers))}"


def main() -> None:
    """Command line."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--weights", type=Path, default=WEIGHTS)
    p.add_argument("--lengths", type=int, nargs="+", default=[512 * 2**n for n in range(10)])
    p.add_argument("--tasks", nargs="+", default=list(TASKS), choices=list(TASKS))
    p.add_argument("--questions", type=int, default=200, help="questions per task and length")
    p.add_argument("--tokens", type=int, default=500_000, help="tokens read per task and length")
    p.add_argument("--haystacks", type=int, default=8, help="read at least, whatever they cost")
    p.add_argument("--far", type=int, nargs="+", default=[0, 2], help="layers that see all of long haystacks")
    p.add_argument("--dense-below", type=int, default=8192, help="shorter haystacks are read densely")
    p.add_argument("--seed", type=int, default=1)
    p.add_argument("--threads", type=int, default=2)
    p.add_argument("--json", type=Path, help="append one line per task and length; those in it are skipped")
    p.add_argument("--table", type=Path, help="print a file written by --json as tables, and stop")
    args = p.parse_args()
    if args.table:
        print(tables(saved(args.table)))
        return
    if min(args.questions, args.haystacks, *args.lengths) < 1:
        p.error("--questions, --haystacks and --lengths: at least 1")
    torch.set_num_threads(args.threads)
    model, coder = load(args.weights), Coder()
    densely, linearly = dense(model), far(model, args.far)
    about = subject(args.weights, args.far, args.dense_below)
    try:
        scores = saved(args.json, about) if args.json else []
    except ValueError as error:
        p.error(f"--json: {error}")
    known = {(score.task, score.length) for score in scores}
    for length in args.lengths:
        judge = densely if length < args.dense_below else linearly
        haystacks, questions = plan(length, args.questions, args.tokens, args.haystacks)
        for task in args.tasks:
            if (task, length) in known:
                continue
            score = evaluate(judge, coder, task, length, haystacks, questions, args.seed)
            score.subject = about
            print(score.line(), flush=True)
            scores.append(score)
            if args.json:
                append(args.json, score)
    print(tables(scores))


if __name__ == "__main__":
    main()
