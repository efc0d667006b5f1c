"""The Triton kernels as ptxas sees them on an H200: no spills, tensor cores, wide copies."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

HERE = pathlib.Path(__file__).parent
SHARED_LIMIT = 227 * 1024
CORE = [
    "decode 128",
    "decode 256",
    "decode mla",
    "decode selected 128 tokens",
    "merge selected 128",
    "chunk 64",
    "chunk 128",
    "chunk 256",
    "chunk mla",
    "top_k digit",
    "top_k write",
    "score 128 tokens",
    "listed 128 units",
    "antidiagonal 128",
    "chunk tiles 128",
    "last sums 128",
    "summary 128",
]


def compiled(names):
    pytest.importorskip("triton")
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    environment |= {"PYTHONPATH": str(HERE.parents[1] / ".src"), "TRITON_DEFAULT_FP_FUSION": "1"}
    run = subprocess.run(
        [sys.executable, HERE / "compile_sm90.py", *names], env=environment, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr[-3000:]
    return [json.loads(line) for line in run.stdout.splitlines()]


def check(rows):
    table = "\n".join(
        f"{row['variant']:24} {row['warps']} warps {row['reg']:3} regs {row['stack']:4} B stack "
        f"{row['spill']:4} spills "
        f"{row['shared'] / 1024:5.0f} KiB {row['mma']:5} {row['async16']:3} x 16 B async"
        for row in rows
    )
    for row in rows:
        fits = row["spill"] == row["stack"] == row["local"] == 0 and row["shared"] <= SHARED_LIMIT
        attends = row["variant"].split()[0] in ("decode", "chunk")
        assert fits, f"{row['variant']} spills or does not fit:\n{table}"
        assert not attends or (row["mma"] != "-" and row["async16"] > 0), (
            f"{row['variant']} is slow:\n{table}"
        )


def test_core_variants():
    rows = compiled(CORE)
    assert [row["variant"] for row in rows] == CORE
    check(rows)


@pytest.mark.slow
def test_every_variant():
    rows = compiled([])
    assert len(rows) > 2 * len(CORE)
    check(rows)
