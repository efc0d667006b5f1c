"""Trains needle: `python -m headway.engine.needle.train --out /tmp/needle/run --minutes 120 --workers 2`."""

import argparse
import json
import os
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from random import Random

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor
from torch.multiprocessing.spawn import start_processes

from headway.engine.needle.coding import Coder
from headway.engine.needle.mix import LENGTHS, LONG, MIXES, Batch, batch
from headway.engine.needle.model import Needle, Shape
from headway.engine.needle.optim import Muon
from headway.engine.needle.reading import Reading, answer, read, reading

QUESTIONS = 1536
"""Tokens of questions and answers about one long haystack."""


def loss_and_hits(model: Needle, b: Batch, hidden: Tensor) -> tuple[Tensor, dict[str, list[int]]]:
    """Mean loss of the answer tokens from their hidden states; per family [answers right, answers]."""
    hidden = hidden[:, :-1]
    wanted = b.answer[:, 1:] >= 0
    logits = model.logits(hidden[wanted])
    targets, owner = b.ids[:, 1:][wanted], b.answer[:, 1:][wanted]
    wrong = torch.zeros(len(b.families)).index_add_(0, owner, (logits.argmax(-1) != targets).float())
    hits: dict[str, list[int]] = defaultdict(lambda: [0, 0])
    for family, bad in zip(b.families, wrong.tolist(), strict=True):
        hits[family][0] += not bad
        hits[family][1] += 1
    return F.cross_entropy(logits, targets), hits


class Run:
    """Everything a run must remember."""

    def __init__(self, args: argparse.Namespace, rank: int) -> None:
        self.args, self.rank, self.mix = args, rank, MIXES[args.mix]
        self.coder = Coder()
        torch.manual_seed(args.seed)
        self.model = Needle(
            Shape(
                self.coder.tokenizer.get_vocab_size(),
                rope_theta=args.theta,
                intermediate_size=args.mlp,
                num_hidden_layers=args.layers,
            )
        )
        if args.compile:
            self.model.compile_parts()
        matrices = [p for n, p in self.model.named_parameters() if p.ndim == 2 and "layers" in n]
        others = [p for n, p in self.model.named_parameters() if not (p.ndim == 2 and "layers" in n)]
        adam = [
            {"params": [p for p in others if p.ndim == 2], "weight_decay": 0.01},
            {"params": [p for p in others if p.ndim == 1], "weight_decay": 0.0},
        ]
        self.optimizers: list[torch.optim.Optimizer] = []
        if args.optimizer == "muon":
            self.optimizers.append(Muon(matrices, lr=args.muon_lr))
        else:
            adam.append({"params": matrices, "weight_decay": 0.05})
        self.optimizers.append(torch.optim.AdamW(adam, lr=args.lr, betas=(0.9, 0.98), fused=True))
        for o in self.optimizers:
            for group in o.param_groups:
                group["peak"] = group["lr"]
        self.step, self.tokens, self.stage, self.seconds = 0, 0, args.stage, 0.0
        self.accuracy = 0.0

    def save(self, path: Path) -> None:
        """Writes a checkpoint that `torch.load(weights_only=True)` reads."""
        state = {
            "model": self.model.state_dict(),
            "optimizers": [o.state_dict() for o in self.optimizers],
            "step": self.step,
            "tokens": self.tokens,
            "stage": self.stage,
            "seconds": self.seconds,
            "accuracy": self.accuracy,
        }
        torch.save(state, path.with_suffix(".tmp"))
        os.replace(path.with_suffix(".tmp"), path)

    def load(self, path: Path, weights_only: bool = False) -> None:
        """Continues a checkpoint; `weights_only` starts a new schedule from its weights."""
        state = torch.load(path, weights_only=True)
        self.model.load_state_dict(state["model"])
        self.tokens, self.step = state["tokens"], state["step"]
        for o, s in zip(self.optimizers, state.get("optimizers", []), strict="optimizers" in state):
            peaks = [g["peak"] for g in o.param_groups]
            o.load_state_dict(s)
            for g, peak in zip(o.param_groups, peaks, strict=True):
                g["peak"] = peak
        if not weights_only:
            self.seconds, self.stage = state["seconds"], state["stage"]

    def set_rate(self) -> None:
        """Warm-up, plateau, then linear decay to a twentieth over the last part of the time."""
        done = self.seconds / (60 * self.args.minutes)
        decay = min(1.0, max(0.05, (1 - done) / self.args.decay))
        for o in self.optimizers:
            for group in o.param_groups:
                group["lr"] = group["peak"] * min(1.0, (self.step + 1) / 100) * decay

    def reduce(self) -> None:
        """Averages the gradients over the workers."""
        if self.args.workers == 1:
            return
        grads = [p.grad for p in self.model.parameters() if p.grad is not None]
        flat = torch.cat([g.reshape(-1) for g in grads])
        dist.all_reduce(flat)
        flat /= self.args.workers
        for g, part in zip(grads, torch.split(flat, [g.numel() for g in grads]), strict=True):
            g.copy_(part.view_as(g))

    def work(self, rng: Random, lengths: Random) -> Iterator[tuple[int, Batch, Callable[[], Tensor]]]:
        """Endlessly (length, batch, its hidden states); all workers draw the same lengths: none waits."""
        while True:
            length = LENGTHS[self.stage]
            if length >= LONG:
                length = lengths.choices(LENGTHS, self.mix.shares)[0]
            elif lengths.random() < 0.33:
                length = LENGTHS[lengths.randint(max(0, self.stage - 3), self.stage)]
            if length >= LONG:
                r = reading(rng, self.coder, length, QUESTIONS, self.mix, self.args.skips)
                yield length, r.questions, partial(self.answer, r)
                continue
            rows = max(1, self.args.tokens // length)
            skips = 0.5 if length >= 1024 else 0.0
            b = batch(rng, self.coder, length, rows, 0.2 if self.stage == 0 else 0.04, skips)
            yield length, b, partial(self.model, b.ids, b.positions)

    def answer(self, r: Reading) -> Tensor:
        """Hidden states of the questions about a long haystack."""
        kept = read(self.model, r.ids, self.args.far or range(self.args.layers), r.positions)
        return answer(self.model, kept, r.questions)

    def update(self, loss: Tensor) -> None:
        """One step of the optimizers on the mean gradient of all workers."""
        parameters = list(self.model.parameters())
        for p in parameters:
            p.grad = None
        torch.autograd.backward(loss)
        self.reduce()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        for o in self.optimizers:
            o.step()

    def train(self) -> None:
        """Runs until the time is over."""
        out = Path(self.args.out)
        rng = Random(self.args.seed * 1000 + self.rank + self.step * 7919)
        work = self.work(rng, Random(self.args.seed + self.step))
        hits: dict[str, list[int]] = defaultdict(lambda: [0, 0])
        seen_in_stage, logged, saved, losses = 0, time.time(), time.time(), []
        clock, tokens_logged = time.time(), self.tokens
        while self.seconds < 60 * self.args.minutes:
            self.set_rate()
            length, b, run = next(work)
            loss, got = loss_and_hits(self.model, b, run())
            self.update(loss)
            losses.append(loss.item())
            for family, (right, total) in got.items():
                hits[f"{family}@{length}"][0] += right
                hits[f"{family}@{length}"][1] += total
            base = [v for f, v in got.items() if f in ("short", "plain", "line", "sentence")]
            right, total = sum(v[0] for v in base), sum(v[1] for v in base)
            flags = torch.tensor([right, total, time.time() - clock], dtype=torch.float64)
            if self.args.workers > 1:
                dist.all_reduce(flags)
            clock = time.time()
            self.seconds += flags[2].item() / self.args.workers
            self.step += 1
            self.tokens += self.args.workers * b.ids.numel()
            if length == LENGTHS[self.stage] and flags[1] > 0:
                seen_in_stage += 1
                share = flags[0].item() / flags[1].item()
                self.accuracy += (share - self.accuracy) * max(0.04, 1 / seen_in_stage)
            ready = seen_in_stage >= 25 and self.accuracy > self.args.advance
            if ready and self.stage < self.args.last_stage:
                self.stage, seen_in_stage, self.accuracy = self.stage + 1, 0, 0.0
            if self.rank == 0 and time.time() - logged > 60:
                rate = (self.tokens - tokens_logged) / (time.time() - logged)
                line = {
                    "minutes": round(self.seconds / 60, 2),
                    "step": self.step,
                    "tokens": self.tokens,
                    "rate": round(rate),
                    "length": LENGTHS[self.stage],
                    "loss": round(sum(losses) / len(losses), 4),
                    "accuracy": round(self.accuracy, 3),
                    "families": {f: [round(r / n, 3), n] for f, (r, n) in sorted(hits.items())},
                }
                with (out / "log.jsonl").open("a") as log:
                    log.write(json.dumps(line) + "\n")
                hits.clear()
                losses, logged, tokens_logged = [], time.time(), self.tokens
            if self.rank == 0 and time.time() - saved > 60:
                self.save(out / "checkpoint.pt")
                saved = time.time()
        if self.rank == 0:
            self.save(out / "checkpoint.pt")


def work(rank: int, args: argparse.Namespace) -> None:
    """One worker process."""
    torch.set_num_threads(args.threads)
    if args.workers > 1:
        dist.init_process_group(
            "gloo", init_method=f"tcp://127.0.0.1:{args.port}", rank=rank, world_size=args.workers
        )
    run = Run(args, rank)
    path = Path(args.out) / "checkpoint.pt"
    if path.exists():
        run.load(path)
    elif args.start:
        run.load(Path(args.start), weights_only=True)
    run.train()


def main() -> None:
    """Command line."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    p.add_argument(
        "--out", required=True, help="folder for log.jsonl and checkpoint.pt; continues what is there"
    )
    p.add_argument("--start", default="", help="checkpoint whose weights to start from, with a new schedule")
    p.add_argument(
        "--minutes", type=float, default=100, help="training time, also the length of the schedule"
    )
    p.add_argument("--decay", type=float, default=0.4, help="last part of the time in which the rate falls")
    p.add_argument("--workers", type=int, default=2, help="data-parallel processes")
    p.add_argument("--threads", type=int, default=1, help="threads of each process")
    p.add_argument("--tokens", type=int, default=2048, help="tokens per step and worker")
    p.add_argument("--seed", type=int, default=1)
    p.add_argument("--optimizer", choices=("muon", "adamw"), default="muon")
    p.add_argument("--lr", type=float, default=2e-3, help="peak rate of AdamW")
    p.add_argument("--muon-lr", type=float, default=4e-3, help="peak rate of Muon")
    p.add_argument("--theta", type=float, default=1e10, help="base of the rotary embedding")
    p.add_argument("--mlp", type=int, default=320, help="width of the MLP")
    p.add_argument("--layers", type=int, default=4, help="number of layers")
    p.add_argument(
        "--far", type=int, nargs="*", default=[], help="layers in which questions see all of a long haystack"
    )
    p.add_argument(
        "--mix", choices=tuple(MIXES), default="even", help="of lengths and tasks, with long haystacks"
    )
    p.add_argument("--skips", type=float, default=0.0, help="chance that positions of a long haystack jump")
    p.add_argument("--stage", type=int, default=0, help="first stage")
    p.add_argument("--last-stage", type=int, default=5, help="last stage; lengths " + str(LENGTHS))
    p.add_argument("--advance", type=float, default=0.9, help="accuracy that ends a stage")
    p.add_argument("--compile", action="store_true", help="torch.compile: 1.3 times as fast, needs g++")
    p.add_argument("--port", type=int, default=29511)
    args = p.parse_args()
    Path(args.out).mkdir(parents=True, exist_ok=True)
    (Path(args.out) / "args.json").write_text(json.dumps(vars(args), indent=2))
    if args.workers == 1:
        work(0, args)
    else:
        start_processes(work, (args,), nprocs=args.workers)  # type: ignore[no-untyped-call]


if __name__ == "__main__":
    main()
