"""The Triton kernels in Triton's interpreter, in a process that asks for it from the start."""

import os
import pathlib
import subprocess
import sys

import pytest

HERE = pathlib.Path(__file__).parent


@pytest.mark.parametrize(
    "extra", [[], pytest.param(["-m", "slow"], marks=pytest.mark.slow)], ids=["fast", "slow"]
)
def test_interpreted(extra):
    pytest.importorskip("triton")
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", HERE / "interpreted", *extra],
        env={**os.environ, "TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        cwd=HERE.parents[1],
    )
    assert run.returncode == 0, run.stdout[-6000:]
