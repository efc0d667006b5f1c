"""How an engine ends: hanging, killed, failed at start, orphaned, closed; and how its clients learn of it."""

import asyncio
import os
import signal
import subprocess
import sys
import threading
import time
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import torch

from headway.engine import loop
from headway.engine.config import EngineConfig
from headway.engine.config_section import parse
from headway.engine.errors import ConfigError, EngineDead, ModelRefused
from headway.engine.in_process_client import InProcessClient
from headway.engine.messages import FromEngine, Heartbeat, Progress, RequestEvent, Shutdown, Submit, Tokens
from headway.engine.process_client import ProcessClient

from .hash_runner import HashRunner, alone, make_engine, make_submit
from .models.families import save


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, object]]:
    folder = save("llama", tmp_path_factory.mktemp("life"))
    return {"model": {"name": str(folder), "threads": 1}, "cache": {"memory_gib": 0.01}}


class Gate:
    """Lets a runner's batches through one by one."""

    def __init__(self, runner: HashRunner, monkeypatch: pytest.MonkeyPatch) -> None:
        self.open = threading.Event()
        self.passed = 0
        healthy = runner.run

        def run(batch: object) -> torch.Tensor:
            assert self.open.wait(30)
            self.passed += 1
            return healthy(batch)

        monkeypatch.setattr(runner, "run", run)


async def collect(client: InProcessClient | ProcessClient, submit: Submit) -> list[RequestEvent]:
    return [event async for event in client.generate(submit)]


async def until(condition: object, seconds: float = 10.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.02)


def test_leaving_during_a_prefill_takes_effect_within_one_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    engine, runner = make_engine(128, max_step_tokens=16)
    gate = Gate(runner, monkeypatch)
    gate.open.set()

    async def leave() -> int:
        client = InProcessClient(EngineConfig(), engine)
        stream = client.generate(make_submit("left", [2] * 400, progress=True))
        assert isinstance(await anext(stream), Progress)
        gate.open.clear()
        await asyncio.sleep(0.2)  # the next chunk is at the gate now, or was let through before
        before = gate.passed
        await stream.aclose()
        gate.open.set()
        await until(lambda: client.stats().pages_used == 0 and client.stats().running == 0)
        await client.close()
        return gate.passed - before

    assert asyncio.run(leave()) <= 1


def test_a_hanging_engine_is_reported_and_may_come_back(monkeypatch: pytest.MonkeyPatch) -> None:
    engine, runner = make_engine(32)
    gate = Gate(runner, monkeypatch)

    async def hang() -> None:
        client = InProcessClient(EngineConfig(watchdog_seconds=2.0), engine)
        with pytest.raises(EngineDead, match=r"no sign of life for 2 s"):
            await collect(client, make_submit("waits", [2] * 9, max_tokens=50))
        assert not client.is_alive()
        with pytest.raises(EngineDead):
            await collect(client, make_submit("late", [2]))
        gate.open.set()
        await until(client.is_alive)
        again = make_submit("again", [3] * 9, max_tokens=3)
        events = await collect(client, again)
        assert [e.token_ids[0] for e in events if isinstance(e, Tokens)] == alone(again, 3)
        await client.close()

    asyncio.run(hang())


def test_a_lost_accelerator_ends_all_requests(monkeypatch: pytest.MonkeyPatch) -> None:
    engine, runner = make_engine(32)

    def run(_: object) -> torch.Tensor:
        raise torch.AcceleratorError("unspecified launch failure")

    monkeypatch.setattr(runner, "run", run)

    async def lose() -> None:
        client = InProcessClient(EngineConfig(), engine)
        requests = (collect(client, make_submit(str(n), [2 + n])) for n in range(3))
        results = await asyncio.gather(*requests, return_exceptions=True)
        assert all(isinstance(result, EngineDead) for result in results)
        assert not client.is_alive()
        await client.close()

    asyncio.run(lose())


def test_closing_ends_running_requests() -> None:
    engine, _ = make_engine(2048, 16)

    async def close() -> None:
        client = InProcessClient(EngineConfig(), engine)
        stream = client.generate(make_submit("long", [2], max_tokens=30_000))
        await anext(stream)
        await client.close()
        with pytest.raises(EngineDead, match="was closed"):
            await collect(client, make_submit("late", [2]))
        with pytest.raises(EngineDead, match="was closed"):
            async for _ in stream:
                pass
        await client.close()

    asyncio.run(close())


def test_a_stopped_child_hangs_and_a_killed_one_is_dead(tiny: dict[str, dict[str, object]]) -> None:
    async def stop_and_kill() -> None:
        client = await asyncio.to_thread(
            ProcessClient, parse(EngineConfig, {**tiny, "watchdog_seconds": 4.0})
        )
        folder = client.folder
        assert len(await collect(client, make_submit("works", [2] * 9, max_tokens=3))) == 3

        os.kill(client.pid, signal.SIGSTOP)
        with pytest.raises(EngineDead, match="no sign of life"):
            await collect(client, make_submit("waits", [2] * 9))
        assert not client.is_alive()
        os.kill(client.pid, signal.SIGCONT)
        await until(client.is_alive)

        stream = client.generate(make_submit("killed", [2] * 9, max_tokens=400))
        await anext(stream)
        os.kill(client.pid, signal.SIGSTOP)
        began = time.monotonic()
        os.kill(client.pid, signal.SIGKILL)
        with pytest.raises(EngineDead, match=r"ended with code -9|takes no requests"):
            async for _ in stream:
                pass
        assert time.monotonic() - began < 5
        await until(lambda: not client.is_alive(), 2)
        with pytest.raises(EngineDead):
            await collect(client, make_submit("late", [2]))
        await client.close()
        assert not folder.exists()

    asyncio.run(stop_and_kill())


def test_a_failed_start_says_why_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny: dict[str, dict[str, object]]
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    wrong = parse(EngineConfig, {**tiny, "scheduler": {"max_step_tokens": 8, "max_running": 9}})
    with pytest.raises(ConfigError, match=r"scheduler\.max_step_tokens is 8"):
        ProcessClient(wrong)
    with pytest.raises((ConfigError, ModelRefused), match="nowhere"):
        InProcessClient(parse(EngineConfig, {"model": {"name": "/nowhere/at/all"}}))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / ("x" * 100)))
    (tmp_path / ("x" * 100)).mkdir()
    with pytest.raises(ConfigError, match="TMPDIR"):
        ProcessClient(wrong)
    assert [path.name for path in tmp_path.rglob("*")] == ["x" * 100]


def test_an_orphaned_engine_ends_and_clears_up(tmp_path: Path, tiny: dict[str, dict[str, object]]) -> None:
    config = parse(EngineConfig, tiny)
    code = (
        "import sys, time; from headway.engine.config import EngineConfig;"
        "from headway.engine.process_client import ProcessClient;"
        "client = ProcessClient(EngineConfig.model_validate_json(sys.argv[1]));"
        "print(client.pid, flush=True); time.sleep(60)"
    )
    command = [sys.executable, "-c", code, config.model_dump_json()]
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    parent = subprocess.Popen(command, stdout=subprocess.PIPE, env=environment)
    assert parent.stdout is not None
    engine = psutil.Process(int(parent.stdout.readline()))
    parent.kill()
    parent.communicate()
    psutil.wait_procs([engine], timeout=5)
    assert not engine.is_running() or engine.status() == psutil.STATUS_ZOMBIE
    assert list(tmp_path.iterdir()) == []


def test_the_heart_beats_between_submissions_that_take_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """As those do whose prompts a layer router looks at."""
    engine, _ = make_engine(64)
    now, queue, took = 0.0, engine.submit, 0.3
    beats: list[float] = []

    def submit(request: Submit) -> None:
        nonlocal now
        now += took
        queue(request)

    class Burst:
        def __init__(self) -> None:
            self.inbox = [[make_submit(str(n), [2 + n] * 9) for n in range(20)], [Shutdown()]]

        def receive(self, _: float) -> list[Submit | Shutdown]:
            return [] if engine.busy else self.inbox.pop(0)

        def send(self, messages: list[FromEngine]) -> None:
            beats.extend(now for message in messages if isinstance(message, Heartbeat))

    monkeypatch.setattr(engine, "submit", submit)
    monkeypatch.setattr(loop, "time", SimpleNamespace(monotonic=lambda: now))
    loop.serve(engine, Burst())
    assert now > 19 * took
    silence = max(after - before for before, after in pairwise([0.0, *beats, now]))
    assert silence < loop.HEARTBEAT_SECONDS + took
