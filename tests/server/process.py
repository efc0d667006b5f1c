"""A real server: `headway serve` in a process of its own, as users start it."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx

from .live import wait_for


@dataclass
class ServerProcess:
    """A running `headway serve`."""

    process: subprocess.Popen[bytes]
    http: httpx.Client
    log: Path

    def stop(self) -> int:
        """End it as an orchestrator does; its exit code."""
        self.process.terminate()
        return self.process.wait(60)


@contextmanager
def serve(folder: Path, *options: str, **environment: str) -> Iterator[ServerProcess]:
    """Start `headway serve` on a free port and wait until it is ready; killed at the end."""
    log = folder / "server.log"
    command = [sys.executable, "-m", "headway.server", "serve", "--port", "0", "--threads", "1", *options]
    variables = os.environ | {"OMP_NUM_THREADS": "1", "COLUMNS": "120"} | environment
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, env=variables)
    try:

        def ready() -> bool:
            assert process.poll() is None, log.read_text()
            return "Try it:" in log.read_text()

        wait_for(ready, 240)
        found = re.search(r"http://127\.0\.0\.1:\d+", log.read_text())
        assert found is not None
        headers = {"Authorization": f"Bearer {environment.get('HEADWAY_API_KEYS')}"}
        with httpx.Client(base_url=found[0], timeout=60, headers=headers) as client:
            wait_for(lambda: _answers(client))
            yield ServerProcess(process, client, log)
    finally:
        process.kill()
        process.wait()


def _answers(client: httpx.Client) -> bool:
    try:
        return client.get("/health").status_code == 200
    except httpx.TransportError:
        return False
