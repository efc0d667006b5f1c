"""Streams over real sockets: what each event holds, when it comes, and what ends it."""

import json
import socket
import threading
import time
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from headway.engine.errors import QueueFull, RequestFailed

from .live import live, wait_for
from .scripted_engine import ScriptedEngine

CHAT = "/v1/chat/completions"
MESSAGES = [{"role": "user", "content": "What is the secret code?"}]


def events(client: httpx.Client, body: dict[str, Any], path: str = CHAT) -> list[Any]:
    """Every event's data, decoded; comments as None."""
    result: list[Any] = []
    with client.stream("POST", path, json={**body, "stream": True}) as answer:
        assert answer.status_code == 200, answer.read()
        assert answer.headers["content-type"].startswith("text/event-stream")
        for line in answer.iter_lines():
            if line.startswith(":"):
                result.append(None)
            elif line:
                data = line.removeprefix("data: ")
                result.append(data if data == "[DONE]" else json.loads(data))
    return result


def test_one_event_a_token(app: FastAPI, engine: ScriptedEngine) -> None:
    with live(app) as client:
        *chunks, done = events(client, {"messages": MESSAGES})
    assert done == "[DONE]"
    assert len(chunks) == len(engine.tokenizer.encode(engine.answer, False)) + 1
    assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}
    assert len({chunk["id"] for chunk in chunks}) == 1
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks]
    assert ["role" in delta for delta in deltas] == [True] + [False] * (len(deltas) - 1)
    assert "".join(delta["content"] for delta in deltas) == engine.answer
    reasons = [chunk["choices"][0]["finish_reason"] for chunk in chunks]
    assert reasons == [None] * (len(chunks) - 1) + ["stop"]
    assert all("usage" not in chunk for chunk in chunks)


def test_usage_only_if_asked_for(app: FastAPI) -> None:
    with live(app) as client:
        *chunks, usage, _ = events(client, {"messages": MESSAGES, "stream_options": {"include_usage": True}})
        assert all(chunk["usage"] is None for chunk in chunks)
        assert usage["choices"] == []
        assert usage["usage"]["completion_tokens"] == len(chunks)
        options = {"continuous_usage_stats": True}
        *chunks, _ = events(client, {"messages": MESSAGES, "stream_options": options})
        assert [chunk["usage"]["completion_tokens"] for chunk in chunks] == [*range(1, len(chunks) + 1)]


def test_streamed_completions_of_several_prompts(app: FastAPI, engine: ScriptedEngine) -> None:
    engine.pause = 0.001
    body = {"prompt": ["a", "b"], "echo": True, "logprobs": 1, "max_tokens": 4}
    with live(app) as client:
        *chunks, _ = events(client, body, "/v1/completions")
    texts, offsets = {0: "", 1: ""}, {0: [], 1: []}
    for chunk in chunks:
        [choice] = chunk["choices"]
        texts[choice["index"]] += choice["text"]
        offsets[choice["index"]] += choice["logprobs"]["text_offset"]
    assert {index: text[0] for index, text in texts.items()} == {0: "a", 1: "b"}
    assert engine.answer.startswith(texts[0][1:])
    assert len(offsets[0]) == 5
    assert offsets[0] == sorted(offsets[0])


def test_progress_is_opt_in(app: FastAPI, engine: ScriptedEngine) -> None:
    engine.cached = 2
    with live(app) as client:
        assert all(chunk["choices"] for chunk in events(client, {"messages": MESSAGES})[:-1])
        chunks = events(client, {"messages": MESSAGES, "stream_options": {"include_progress": True}})
    progress = [chunk["headway"]["prefill"] for chunk in chunks[:-1] if "headway" in chunk]
    total = len(engine.submits[0].prompt)
    assert [(step["done"], step["total"], step["cached"]) for step in progress] == [
        (total // 2, total, 2),
        (total, total, 2),
    ]


def test_silence_is_filled_with_comments(make_app: Callable[..., FastAPI], engine: ScriptedEngine) -> None:
    engine.prefill = 600.0
    body = {"messages": MESSAGES, "stream": True}
    with (
        live(make_app(keep_alive_seconds=0.1)) as client,
        client.stream("POST", CHAT, json=body) as answer,
    ):
        lines = (line for line in answer.iter_lines() if line)
        assert [next(lines), next(lines)] == [": keep-alive"] * 2


def test_refusal_before_the_first_event_has_a_status(app: FastAPI, engine: ScriptedEngine) -> None:
    engine.error = QueueFull("the queue holds 3 requests", retry_after=7)
    with live(app) as client:
        answer = client.post(CHAT, json={"messages": MESSAGES, "stream": True})
    assert answer.status_code == 429
    assert answer.headers["retry-after"] == "7"
    assert answer.json()["error"]["code"] == "queue_full"


def test_later_error_is_the_last_event(app: FastAPI, engine: ScriptedEngine) -> None:
    engine.error = RequestFailed("out of luck")
    engine.fail_after = 2
    with live(app) as client:
        received = events(client, {"messages": MESSAGES})
    assert [chunk["choices"][0]["delta"]["content"] for chunk in received[:2]] != ["", ""]
    assert received[2:] == [
        {"error": {"message": "out of luck", "type": "server_error", "param": None, "code": "request_failed"}}
    ]


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("phase", ["prefill", "decode"])
def test_leaving_aborts(stream: bool, phase: str, app: FastAPI, engine: ScriptedEngine) -> None:
    engine.prefill, engine.pause = (600.0, 0.0) if phase == "prefill" else (0.0, 0.2)
    body = json.dumps({"messages": MESSAGES, "stream": stream, "n": 2}).encode()
    headers = f"Host: x\r\nContent-Type: application/json\r\nContent-Length: {len(body)}"
    head = f"POST {CHAT} HTTP/1.1\r\n{headers}\r\n\r\n"
    with live(app) as client:
        with socket.create_connection(("127.0.0.1", client.base_url.port)) as leaver:
            leaver.sendall(head.encode() + body)
            wait_for(lambda: engine.running == 2)
            if stream and phase == "decode":
                assert leaver.recv(100).startswith(b"HTTP/1.1 200")
        wait_for(lambda: engine.running == 0)
        assert len(engine.aborted) == 2
        metrics = client.get("/metrics").text
    assert 'vllm:request_success_total{finished_reason="abort",model_name="needle"} 2.0' in metrics


def test_a_long_prompt_does_not_stop_the_others(app: FastAPI) -> None:
    text = "The grass is green. The sky is blue. " * 40_000
    with live(app) as client:
        tokenizing = threading.Thread(target=lambda: client.post("/tokenize", json={"prompt": text}))
        start = time.monotonic()
        tokenizing.start()
        waits = []
        while tokenizing.is_alive():
            asked = time.monotonic()
            assert client.get("/health").status_code == 200
            waits.append(time.monotonic() - asked)
        tokenizing.join()
    assert max(waits) < (time.monotonic() - start) / 2
