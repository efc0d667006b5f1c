"""The image's entry point, from the installed wheel: healthy, guarded by its key, ended by SIGTERM."""

import http.client
import json
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

KEY = "a-key-for-tests"


def health(docker: Path, port: int) -> int:
    """The exit status of the image's health check."""
    command = [sys.executable, "-I", "-S", str(docker / "healthcheck.py"), str(port)]
    environment = {"http_proxy": "http://127.0.0.1:9"}
    return subprocess.run(command, env=environment, capture_output=True, timeout=30, check=False).returncode


@pytest.fixture
def free_port() -> int:
    """A port that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


@pytest.mark.parametrize(("answer", "status"), [(200, 0), (503, 1), (404, 1)])
def test_the_health_check_reads_the_answer(docker: Path, answer: int, status: int) -> None:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(answer if self.path == "/health" else 500)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.handle_request, daemon=True).start()
        assert health(docker, server.server_port) == status


def test_the_health_check_fails_when_nothing_listens(docker: Path, free_port: int) -> None:
    assert health(docker, free_port) == 1


@pytest.fixture
def server(
    installed: Any, cpu_stages: Any, docker: Path, free_port: int, tmp_path: Path
) -> Iterator[subprocess.Popen[str]]:
    """The image's entry point on a free port, in a folder that is not the repository."""
    config = shutil.copy2(docker / "config.yaml", tmp_path)
    (entrypoint,) = (i for i in cpu_stages[-1] if i.keyword == "ENTRYPOINT")
    places = {"/etc/headway/config.yaml": config, "8000": str(free_port), "0.0.0.0": "127.0.0.1"}
    command = [places.get(argument, argument) for argument in entrypoint.arguments]
    venv = Path(installed.environment["VENV"])
    environment = installed.environment | {"HEADWAY_API_KEYS": KEY, "HOME": str(tmp_path)}
    process = subprocess.Popen(
        [venv / "bin" / command[0], *command[1:], "--threads", "1", "--memory", "0.25"],
        env=environment,
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    yield process
    process.kill()
    process.communicate()


def ask(port: int, method: str, path: str, body: Any = None, key: str | None = KEY) -> tuple[int, Any]:
    """One request to the server; returns its status and its JSON."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {key}"} if key else {})
    connection.request(method, path, json.dumps(body) if body else None, headers)
    response = connection.getresponse()
    return response.status, json.loads(response.read())


@pytest.mark.slow
def test_the_image_serves(server: subprocess.Popen[str], docker: Path, free_port: int) -> None:
    deadline = time.monotonic() + 200
    while health(docker, free_port) != 0:
        assert server.poll() is None, server.stdout and server.stdout.read()
        assert time.monotonic() < deadline, "the server did not become healthy"
        time.sleep(0.5)

    assert ask(free_port, "GET", "/v1/models", key=None)[0] == 401
    status, models = ask(free_port, "GET", "/v1/models")
    assert (status, models["data"][0]["id"]) == (200, "needle")
    question = {"model": "needle", "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 4}
    status, answer = ask(free_port, "POST", "/v1/chat/completions", question)
    assert status == 200, answer
    assert answer["usage"]["completion_tokens"] >= 1

    server.terminate()
    assert server.wait(timeout=30) == 0
