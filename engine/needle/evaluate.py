"""Exact match by task and length: `python -m headway.engine.needle.evaluate --lengths 512 1024`.

A haystack is prefilled once; each question continues its cache, which is cut back afterwards. The answer is
fed along and counts as exact when every one of its tokens, the end token included, is the arg-max: just what
greedy decoding would give.
"""

import argparse
import json
import math
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from random import Random

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, DynamicCache, PreTrainedModel

from headway.engine.needle import WEIGHTS
from headway.engine.needle.coding import Coder, Pieces
from headway.engine.needle.haystacks import filler
from headway.engine.needle.tasks import Question, Sample, Spec, Tail, assemble, make, split

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
        Spec(keys="noun", needles="sentence", filler="prose", separator=" ", count=4, values_per_key=n)
        for n in (2, 4)
    ],
    "many_queries": [
        Spec(keys="noun", needles="sentence", filler="prose", separator=" ", density=0.1, queries=n)
        for n in (2, 4)
    ],
    "names": [Spec(keys="name", needles="sentence", filler="prose", separator=" ", density=0.3)],
    "uuid": [Spec(keys="uuid", needles="sentence")],
    **{f"tracking_{n}": [Spec(hops=n, count=1, filler="noise")] for n in (1, 2, 4)},
}


@dataclass
class Score:
    """Answers right among n, over some haystacks of one task and length."""

    task: str
    length: int
    right: int = 0
    n: int = 0
    haystacks: int = 0
    seconds: float = 0.0

    def interval(self, z: float = 1.96) -> tuple[float, float]:
        """Wilson's 95 % interval."""
        p, n = self.right / self.n, self.n
        middle, half = p + z * z / (2 * n), z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
        return max(0.0, middle - half) / (1 + z * z / n), min(1.0, (middle + half) / (1 + z * z / n))


@torch.inference_mode()
def exact(model: PreTrainedModel, prefix: list[int], tails: list[Tail]) -> list[bool]:
    """Whether `model` answers each (question, answer) exactly after the common prefix."""
    cache = DynamicCache(config=model.config)
    model(torch.tensor([prefix]), past_key_values=cache, logits_to_keep=1)
    out = []
    for ask, answer in tails:
        ids = torch.tensor([ask + answer])
        logits: Tensor = model(ids, past_key_values=cache, logits_to_keep=len(answer) + 1).logits
        out.append(bool((logits[0, :-1].argmax(-1) == torch.tensor(answer)).all()))
        cache.crop(-ids.shape[1])
    return out


def haystack(
    coder: Coder, task: str, length: int, index: int, questions: int, seed: int
) -> tuple[list[int], list[Tail]]:
    """Haystack `index` of a task: common prefix and (question, answer) tails, within `length` tokens."""
    rng = Random(f"needle evaluation {seed} {task} {length} {index}")
    spec = replace(TASKS[task][index % len(TASKS[task])], questions=questions)
    sample = make(rng, coder, length, spec)
    return split(coder, sample, sample.questions[:questions])


def shared(coder: Coder, length: int, index: int, seed: int) -> tuple[list[int], dict[str, list[Tail]]]:
    """One haystack of prose that holds facts of every task, for lengths where each prefill takes minutes."""
    rng = Random(f"needle shared evaluation {seed} {length} {index}")
    taken: set[str] = set()
    queues: list[list[Pieces]] = []
    asked: dict[str, list[Question]] = {}
    for task, specs in TASKS.items():
        spec, count = specs[index % len(specs)], 1 if task.startswith("tracking") else 4
        spec = replace(spec, filler="none", separator="\n", density=1.0, count=count, questions=8)
        sample = make(rng, coder, 1000, spec)
        while taken & (keys := frozenset().union(*(q.keys for q in sample.questions))):
            sample = make(rng, coder, 1000, spec)
        taken |= keys
        units: list[Pieces] = [[]]
        for piece in sample.context:
            if piece == "\n":
                units.append([])
            else:
                units[-1].append(piece)
        queues.append(units)
        asked[task] = list({"".join(q.answer): q for q in sample.questions}.values())
    needles: list[Pieces] = []
    while queues := [q for q in queues if q]:
        needles.append(rng.choice(queues).pop(0))
    room = length - 150 - sum(len(coder.ids(n)) + 1 for n in needles)
    context = assemble(rng, Spec(), needles, filler(rng, coder, "prose", room))
    prefix, tails = split(coder, Sample(context, []), [q for qs in asked.values() for q in qs])
    by_answer = {tuple(answer): (ask, answer) for ask, answer in tails}
    found = {
        task: [by_answer[*coder.ids(q.answer), coder.end] for q in questions]
        for task, questions in asked.items()
    }
    return prefix, found


def evaluate(
    model: PreTrainedModel, coder: Coder, task: str, length: int, haystacks: int, questions: int, seed: int
) -> Score:
    """Scores one task at one length."""
    score, begin = Score(task, length), time.time()
    for index in range(haystacks):
        prefix, tails = haystack(coder, task, length, index, questions, seed)
        results = exact(model, prefix, tails)
        score.right += sum(results)
        score.n += len(results)
        score.haystacks += 1
    score.seconds = round(time.time() - begin, 1)
    return score


def evaluate_shared(
    model: PreTrainedModel, coder: Coder, length: int, haystacks: int, seed: int
) -> list[Score]:
    """Scores all tasks at one length, on haystacks that hold them all."""
    scores = {task: Score(task, length) for task in TASKS}
    for index in range(haystacks):
        begin = time.time()
        prefix, found = shared(coder, length, index, seed)
        flat = [(task, tail) for task, tails in found.items() for tail in tails]
        for (task, _), ok in zip(flat, exact(model, prefix, [tail for _, tail in flat]), strict=True):
            scores[task].right += ok
            scores[task].n += 1
        for score in scores.values():
            score.haystacks += 1
            score.seconds += round(time.time() - begin, 1)
    return list(scores.values())


def table(path: Path) -> str:
    """Markdown of a file written by --json: exact match in percent, answers counted in brackets."""
    cells: dict[tuple[str, int], Score] = {}
    for line in path.read_text().splitlines():
        score = Score(**json.loads(line))
        old = cells.get((score.task, score.length))
        if old:
            score.right, score.n = score.right + old.right, score.n + old.n
        cells[score.task, score.length] = score
    lengths = sorted({length for _, length in cells})
    rows = ["| task | " + " | ".join(map(str, lengths)) + " |", "|---|" + "---|" * len(lengths)]
    for task in TASKS:
        found = [cells.get((task, length)) for length in lengths]
        if any(found):
            shown = (f"{100 * c.right / c.n:.0f} ({c.n})" if c else "–" for c in found)
            rows.append(f"| {task} | " + " | ".join(shown) + " |")
    return "\n".join(rows)


def load(folder: Path = WEIGHTS) -> PreTrainedModel:
    """The shipped model in float32."""
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    return model.eval()


def main() -> None:
    """Command line."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--weights", type=Path, default=WEIGHTS)
    p.add_argument("--lengths", type=int, nargs="+", default=[512, 1024, 2048, 4096, 8192])
    p.add_argument("--tasks", nargs="+", default=list(TASKS), choices=list(TASKS))
    p.add_argument("--haystacks", type=int, default=4, help="haystacks per task and length")
    p.add_argument(
        "--questions", type=int, default=16, help="questions per haystack, where it holds as many facts"
    )
    p.add_argument("--seed", type=int, default=1)
    p.add_argument("--threads", type=int, default=2)
    p.add_argument("--json", type=Path, help="append one line per task and length")
    p.add_argument(
        "--shared", action="store_true", help="one haystack for all tasks: for the longest lengths"
    )
    p.add_argument("--table", type=Path, help="print a file written by --json as a table, and stop")
    args = p.parse_args()
    if args.table:
        print(table(args.table))
        return
    torch.set_num_threads(args.threads)
    model, coder = load(args.weights), Coder()
    for length in args.lengths:
        if args.shared:
            scores: Iterable[Score] = evaluate_shared(model, coder, length, args.haystacks, args.seed)
        else:
            settings = (length, args.haystacks, args.questions, args.seed)
            scores = (evaluate(model, coder, task, *settings) for task in args.tasks)
        for score in scores:
            low, high = score.interval()
            rate = f"{score.right / score.n:6.3f}  [{low:.3f}, {high:.3f}]  n={score.n}"
            print(
                f"{length:7d} {score.task:14s} {rate} haystacks={score.haystacks} {score.seconds} s",
                flush=True,
            )
            if args.json:
                with args.json.open("a") as file:
                    file.write(json.dumps(asdict(score)) + "\n")


if __name__ == "__main__":
    main()
