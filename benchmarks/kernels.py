"""Paged attention against torch SDPA: `python -m benchmarks.kernels [--quick] [--json FILE]`.

SDPA gets what it is best at: its own contiguous [1, Hkv, N, D] copy of K and V, which a paged server does
not have. The two are timed in turn and the best of n counts, so that a busy machine hurts both alike.
"""

import argparse
import json
import platform
import random
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.nn.attention.bias import causal_lower_right
from torch.nn.functional import scaled_dot_product_attention

from headway.kernels.paged_attention import paged_attention, plan
from headway.kernels.paged_attention.cpu_cache import multiplies_fast

PAGE_SIZE = 64


@dataclass(frozen=True)
class Case:
    """Sequences of (new tokens, all tokens); `pages`: contiguous, or shuffled over the whole pool."""

    name: str
    lens: tuple[tuple[int, int], ...]
    pages: str = "contiguous"
    window: int | None = None

    @property
    def pairs(self) -> int:
        """Query-key pairs that the causal mask and the window leave."""
        reach = [self.window or kv_len for _, kv_len in self.lens]
        return sum(
            min(kv_len - i, most)
            for (q_len, kv_len), most in zip(self.lens, reach, strict=True)
            for i in range(q_len)
        )

    @property
    def keys(self) -> int:
        """Keys that must be read at least once."""
        return sum(
            kv_len if self.window is None else min(kv_len, q_len + self.window) for q_len, kv_len in self.lens
        )


@dataclass(frozen=True)
class Row:
    case: str
    ours_ms: float
    sdpa_ms: float
    speedup: float
    tflops: float
    gb_per_s: float


CONCURRENT = tuple((1, 400 - 7 * i) for i in range(16))
GPU_CASES = (
    Case("8192 over 128k", ((8192, 131072),)),
    Case("decode 128k, shuffled", ((1, 131072),), "shuffled"),
    Case("16 decodes of 32k, shuffled", ((1, 32768),) * 16, "shuffled"),
)


def cases(unit: int) -> list[Case]:
    """`unit`: the length of a whole prefill, in thousands of tokens."""
    whole = unit * 1024
    return [
        Case(f"512 over {unit}k", ((512, whole),)),
        Case(f"512 over {unit}k, shuffled", ((512, whole),), "shuffled"),
        Case(f"512 over {2 * unit}k", ((512, 2 * whole),)),
        Case(f"whole {unit}k", ((whole, whole),)),
        Case(f"whole {unit}k, window 1024", ((whole, whole),), window=1024),
        Case("decode 8k", ((1, 8192),)),
        Case("decode 32k", ((1, 32768),)),
        Case("decode 32k, shuffled", ((1, 32768),), "shuffled"),
        Case("16 decodes of 300-400", CONCURRENT),
        Case("16 decodes of 300-400, shuffled", CONCURRENT, "shuffled"),
    ]


def prepare(
    case: Case, heads: tuple[int, int], dim: int, dtype: torch.dtype, device: str
) -> tuple[Callable[[], Tensor], Callable[[], Tensor]]:
    """Ours and SDPA on the same input, both ready to be timed."""
    num_heads, num_kv_heads = heads
    counts = [-(-kv_len // PAGE_SIZE) for _, kv_len in case.lens]
    pages = list(range(sum(counts)))
    if case.pages == "shuffled":
        random.Random(0).shuffle(pages)
    tables = [[pages.pop(0) for _ in range(count)] for count in counts]
    shape = (sum(counts), PAGE_SIZE, num_kv_heads, dim)
    key_cache, value_cache = (torch.randn(shape, dtype=dtype, device=device) for _ in range(2))
    q_lens, kv_lens = [list(column) for column in zip(*case.lens, strict=True)]
    query = torch.randn(sum(q_lens), num_heads, dim, dtype=dtype, device=device)
    batch = plan(q_lens, kv_lens, tables, PAGE_SIZE, device)
    scale = dim**-0.5

    def contiguous(cache: Tensor, table: list[int], kv_len: int) -> Tensor:
        return (
            cache[torch.tensor(table, device=device)]
            .flatten(0, 1)[:kv_len]
            .transpose(0, 1)[None]
            .contiguous()
        )

    parts = []
    for one, table, (q_len, kv_len) in zip(query.split(q_lens), tables, case.lens, strict=True):
        key, value = (contiguous(cache, table, kv_len) for cache in (key_cache, value_cache))
        mask = None
        if case.window is not None:
            position = torch.arange(kv_len - q_len, kv_len, device=device)[:, None]
            j = torch.arange(kv_len, device=device)
            mask = (j <= position) & (j > position - case.window)
        elif 1 < q_len < kv_len:
            mask = causal_lower_right(q_len, kv_len)
        whole = case.window is None and q_len == kv_len
        parts.append((one.transpose(0, 1)[None].contiguous(), key, value, mask, whole))

    def ours() -> Tensor:
        return paged_attention(query, key_cache, value_cache, batch, scale=scale, window=case.window)[0]

    def sdpa() -> Tensor:
        outs = [
            scaled_dot_product_attention(
                q, k, v, attn_mask=mask, is_causal=whole, scale=scale, enable_gqa=True
            )
            for q, k, v, mask, whole in parts
        ]
        return torch.cat([out[0].transpose(0, 1) for out in outs])

    torch.testing.assert_close(ours(), sdpa(), atol=2e-2, rtol=2e-2)  # no speed without equality
    return ours, sdpa


def best(runs: tuple[Callable[[], Tensor], ...], seconds: float, clock: Callable[[], float]) -> list[float]:
    """The fastest of many interleaved runs, in seconds, at least three of each."""
    times = [float("inf")] * len(runs)
    started, rounds = time.perf_counter(), 0
    while rounds < 3 or time.perf_counter() - started < seconds:
        for i, run in enumerate(runs):
            begun = clock()
            out = run()
            if out.is_cuda:
                torch.cuda.synchronize()
            times[i] = min(times[i], clock() - begun)
        rounds += 1
    return times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="under a minute: prefills of 2k instead of 8k")
    parser.add_argument(
        "--cpu-time", action="store_true", help="count processor time: for a machine that is busy"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows and the machine to FILE")
    parser.add_argument("--heads", type=int, nargs=2, default=(8, 2), metavar=("Q", "KV"))
    parser.add_argument("--dim", type=int, default=64)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    clock = time.process_time if args.cpu_time else time.perf_counter
    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = torch.bfloat16 if device == "cuda" or multiplies_fast(torch.bfloat16) else torch.float32
    measured = cases(2 if args.quick else 8) + (list(GPU_CASES) if device == "cuda" else [])

    rows = []
    with torch.inference_mode():
        for case in measured:
            runs = prepare(case, tuple(args.heads), args.dim, dtype, device)
            ours, sdpa = best(runs, 0.5 if args.quick else 4.0, clock)
            flops = 4 * case.pairs * args.heads[0] * args.dim
            size = 2 * case.keys * args.heads[1] * args.dim * dtype.itemsize
            rows.append(
                Row(case.name, ours * 1e3, sdpa * 1e3, sdpa / ours, flops / ours / 1e12, size / ours / 1e9)
            )
    name = torch.cuda.get_device_name() if device == "cuda" else torch.backends.cpu.get_cpu_capability()
    setting = f"{args.heads[0]}/{args.heads[1]} heads of {args.dim}, {dtype}, {name}"
    setting += f", {args.threads} threads, {clock.__name__}"
    show(rows, setting)
    if args.json:
        machine = {
            "device": name,
            "machine": platform.machine(),
            "torch": torch.__version__,
            "setting": setting,
        }
        args.json.write_text(json.dumps({**machine, "rows": [asdict(row) for row in rows]}, indent=1) + "\n")


def show(rows: list[Row], setting: str) -> None:
    table = Table(title=f"paged attention and SDPA on contiguous K, V: {setting}")
    for column in ("", "ours ms", "SDPA ms", "SDPA / ours", "TFLOP/s", "GB/s"):
        table.add_column(column, justify="right" if column else "left")
    for row in rows:
        table.add_row(
            row.case, f"{row.ours_ms:.2f}", f"{row.sdpa_ms:.2f}", f"{row.speedup:.2f}x",
            f"{row.tflops:.3f}", f"{row.gb_per_s:.1f}",
        )  # fmt: skip
    Console().print(table)


if __name__ == "__main__":
    main()
