"""Exact match by task and length: `python -m headway.engine.needle.evaluate --lengths 512 1024`.

A haystack is prefilled once; each question continues its cache, which is cut back afterwards. The answer is fed
along and counts as exact when every one of its tokens, the end token included, is the arg-max: just what greedy
decoding would give.
"""

import argparse
import json
import math
import sys
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from random import Random

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, DynamicCache, PreTrainedModel

from headway.engine.needle import WEIGHTS
from headway.engine.needle.coding import Coder
from headway.engine.needle.tasks import Spec, encode, make

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
def exact(model: PreTrainedModel, prefix: list[int], tails: list[tuple[list[int], list[int]]]) -> list[bool]:
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
) -> tuple[list[int], list[tuple[list[int], list[int]]]]:
    """Haystack `index` of a task: common prefix and (question, answer) tails, within `length` tokens."""
    rng = Random(f"needle evaluation {seed} {task} {length} {index}")
    spec = replace(TASKS[task][index % len(TASKS[task])], questions=questions)
    sample = make(rng, coder, length, spec)
    different = {"".join(q.answer): q for q in sample.questions[:questions]}
    prefix: list[int] = []
    tails = []
    for question in different.values():
        ids, spans = encode(replace(sample, questions=[question]), coder)
        start, stop = spans[0]
        cut = start - len(coder.ids(question.ask)) - 2
        prefix = ids[:cut]
        tails.append((ids[cut:start], ids[start:stop]))
    return prefix, tails


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
    p.add_argument("--table", type=Path, help="print a file written by --json as a table, and stop")
    args = p.parse_args()
    if args.table:
        print(table(args.table))
        return
    torch.set_num_threads(args.threads)
    model, coder = load(args.weights), Coder()
    for length in args.lengths:
        for task in args.tasks:
            score = evaluate(model, coder, task, length, args.haystacks, args.questions, args.seed)
            low, high = score.interval()
            print(
                f"{length:7d} {task:14s} {score.right / score.n:6.3f}  [{low:.3f}, {high:.3f}]  n={score.n} "
                f"haystacks={score.haystacks} {score.seconds} s"
            )
            sys.stdout.flush()
            if args.json:
                with args.json.open("a") as file:
                    file.write(json.dumps(asdict(score)) + "\n")


if __name__ == "__main__":
    main()
