"""Bad input gets a 4xx in OpenAI's form that names the field, and reaches no engine."""

import contextlib
import socket
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from headway.engine.config import EngineConfig, LimitsConfig, SchedulerConfig
from headway.server.app import create_app
from headway.server.settings import ServerConfig, Settings
from headway.server.tokenizer import Tokenizer

from .live import live
from .scripted_engine import ScriptedEngine

Post = Callable[..., httpx.Response]
CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
MESSAGES = [{"role": "user", "content": "hi"}]
LIMITS = LimitsConfig()


def check_refused(answer: httpx.Response, field: str | None, status: int = 400) -> None:
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/json"
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["message"]
    if field is not None:
        assert error["param"] == field or error["param"].startswith(f"{field}."), error


NUMBERS: list[tuple[str, list[Any]]] = [
    ("n", [0, -1, 17, 10**30, 1.0, "1", True]),
    ("max_tokens", [0, -1, 10**30, 5000, 1.5, "5", True]),
    ("min_tokens", [-1, 10**30, True, "1"]),
    ("temperature", [-0.1, 101, "1", True, [1]]),
    ("top_p", [0, -1, 1.01, "1", False]),
    ("top_k", [-2, 2**31, 1.5, True]),
    ("min_p", [-0.1, 1.1, "0", True]),
    ("repetition_penalty", [0, -1, 101, "1"]),
    ("presence_penalty", [-2.1, 2.1, "0"]),
    ("frequency_penalty", [-2.1, 2.1, True]),
    ("seed", [2**64, -(2**64), 1.5, "1", True]),
    ("priority", [2**40, "1", 0.5]),
    ("stop", ["", [""], [1], 5, ["a"] * (LIMITS.max_stop_strings + 1), "a" * 2000]),
    ("stop_token_ids", [[-1], [2**31], [True], ["1"], 5, [10**6]]),
    ("logit_bias", [{"x": 1}, {"-1": 1}, {"5": 101}, {"5": "1"}, {"5": True}, [5], {"1000000": 1}]),
    ("cache_salt", ["", "x" * 300, 5]),
    ("stream", ["yes", 1]),
    ("stream_options", [5, "usage"]),
    ("response_format", [{"type": "json_object"}, {"type": "json_schema"}, "text", {}]),
    ("model", [5, "x" * 1000]),
]


@pytest.mark.parametrize("path", [CHAT, COMPLETIONS])
@pytest.mark.parametrize(("field", "wrong"), NUMBERS, ids=[field for field, _ in NUMBERS])
def test_bounds(path: str, field: str, wrong: list[Any], post: Post, engine: ScriptedEngine) -> None:
    base = {"messages": MESSAGES} if path == CHAT else {"prompt": "hi"}
    for value in wrong:
        check_refused(post(path, base | {field: value}), field)
    assert not engine.submits
    assert post(path, base | {field: None}).status_code == 200


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({}, "prompt"),
        *(
            ({"prompt": prompt}, "prompt")
            for prompt in (None, "", [], [""], [[]], [1, "a"], ["a", 1], [[1], 1])
        ),
        *(
            ({"prompt": prompt}, "prompt")
            for prompt in ([True], [[1, True]], [1.0], [-1], [10**6], {"a": 1}, 5)
        ),
        ({"prompt": [5] * 4096}, "prompt"),
        ({"prompt": [5] * 5000}, "prompt"),
        ({"prompt": ["a"] * 129}, "prompt"),
        ({"prompt": ["a"] * 128, "n": 3}, "prompt"),
        ({"prompt": "a", "stop_token_ids": [5] * 257}, "stop_token_ids"),
        ({"prompt": "a", "best_of": 2}, "best_of"),
        ({"prompt": "a", "suffix": "b"}, "suffix"),
        ({"prompt": "a", "logprobs": 21}, "logprobs"),
        ({"prompt": "a", "logprobs": True}, "logprobs"),
        ({"prompt": "a", "echo": 1}, "echo"),
    ],
)
def test_completions(body: dict[str, Any], field: str, post: Post, engine: ScriptedEngine) -> None:
    check_refused(post(COMPLETIONS, body), field)
    assert not engine.submits


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({}, "messages"),
        ({"messages": []}, "messages"),
        ({"messages": "hi"}, "messages"),
        ({"messages": ["hi"]}, "messages.0"),
        ({"messages": [{"content": "hi"}]}, "messages.0.role"),
        ({"messages": [{"role": "robot", "content": "hi"}]}, "messages.0.role"),
        ({"messages": [{"role": "user"}]}, "messages.0"),
        ({"messages": [{"role": "user", "content": 5}]}, "messages.0.content"),
        ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "messages.0.content.0.text"),
        (
            {
                "messages": [
                    {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "file:///"}}]}
                ]
            },
            "messages.0.content.0.type",
        ),
        ({"messages": MESSAGES * 10_001}, "messages"),
        ({"messages": MESSAGES, "top_logprobs": 2}, "top_logprobs"),
        ({"messages": MESSAGES, "logprobs": 2}, "logprobs"),
        ({"messages": MESSAGES, "logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        ({"messages": MESSAGES, "max_completion_tokens": 5000}, "max_completion_tokens"),
        ({"messages": [{"role": "user", "content": "word " * 5000}]}, "messages"),
        ({"messages": MESSAGES, "tools": [{"type": "function"}]}, "tools"),
        ({"messages": MESSAGES, "tool_choice": "required"}, "tool_choice"),
        ({"messages": MESSAGES, "functions": [{}]}, "functions"),
        ({"messages": MESSAGES, "chat_template": "{{ messages }}"}, "chat_template"),
        ({"messages": MESSAGES, "chat_template_kwargs": {"tokenize": True}}, "chat_template_kwargs"),
        (
            {"messages": MESSAGES, "continue_final_message": True, "add_generation_prompt": True},
            "continue_final_message",
        ),
    ],
)
def test_chat(body: dict[str, Any], field: str, post: Post, engine: ScriptedEngine) -> None:
    check_refused(post(CHAT, body), field)
    assert not engine.submits


def test_null_and_unknown_fields_are_fine(post: Post) -> None:
    nothing = dict.fromkeys([field for field, _ in NUMBERS])
    assert post(CHAT, {**nothing, "messages": MESSAGES, "tools": [], "new_idea": {"a": 1}}).status_code == 200
    assert post(COMPLETIONS, {**nothing, "prompt": "a", "logprobs": None, "best_of": None}).status_code == 200


def test_millions_of_wrong_items_are_one_error(post: Post) -> None:
    for body in ({"prompt": ["a"] * 500_000 + [1]}, {"prompt": "a", "stop": [1] * 500_000}):
        answer = post(COMPLETIONS, body)
        check_refused(answer, None)
        assert len(answer.content) < 500


@pytest.mark.parametrize("content_type", ["text/plain", "application/x-www-form-urlencoded", ""])
def test_content_type(content_type: str, post: Post) -> None:
    answer = post(COMPLETIONS, content=b'{"prompt": "a"}', headers={"Content-Type": content_type})
    check_refused(answer, None, 415)


def test_unknown_paths_methods_and_models(app: FastAPI) -> None:
    with live(app) as client:
        check_refused(client.get("/v2/nothing"), None, 404)
        check_refused(client.get("/v1/models/"), None, 404)
        check_refused(client.get(COMPLETIONS), None, 405)
        check_refused(client.post(COMPLETIONS, json={"prompt": "a", "model": "gpt-9"}), "model", 404)
        check_refused(client.post("/detokenize", json={"tokens": [10**6]}), "tokens")
        check_refused(client.post("/tokenize", json={"prompt": "a", "messages": MESSAGES}), "prompt")
        check_refused(client.post("/tokenize", json={}), "prompt")


def chunks(count: int) -> Iterator[bytes]:
    for _ in range(count):
        yield b" " * 1024


def test_body_limit_holds_for_declared_and_for_chunked_bodies(make_app: Callable[..., FastAPI]) -> None:
    with live(make_app(max_body_bytes=4096)) as client:
        headers = {"Content-Type": "application/json"}
        check_refused(client.post(COMPLETIONS, content=b" " * 5000, headers=headers), None, 413)
        check_refused(client.post(COMPLETIONS, content=chunks(64), headers=headers), None, 413)
        check_refused(client.post(COMPLETIONS, content=chunks(4), headers=headers), None, 400)
        assert client.post(COMPLETIONS, json={"prompt": "a"}).status_code == 200


@pytest.mark.parametrize("header", [b"X-Long: " + b"x" * 2_000_000, b"X-Many: x\r\n" * 50_000])
def test_endless_headers_end_the_connection(header: bytes, app: FastAPI) -> None:
    with live(app) as client, socket.create_connection(("127.0.0.1", client.base_url.port)) as rude:
        with contextlib.suppress(ConnectionError):
            rude.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\n" + header)
        rude.settimeout(30)
        with contextlib.suppress(ConnectionError):
            assert rude.recv(100).startswith(b"HTTP/1.1 431")
            assert rude.recv(100) == b""
        assert client.get("/health").status_code == 200


def test_endless_trailers_end_the_connection(app: FastAPI) -> None:
    head = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
    with live(app) as client, socket.create_connection(("127.0.0.1", client.base_url.port)) as rude:
        with contextlib.suppress(ConnectionError):
            rude.sendall(head + b"2\r\n{}\r\n0\r\n")
            for _ in range(40):
                rude.sendall(b"X-More: x\r\n" * 1000)
        rude.settimeout(30)
        with contextlib.suppress(ConnectionError):
            while rude.recv(4096):
                pass
        assert client.get("/health").status_code == 200


def test_error_texts_use_the_fields_of_the_request(post: Post) -> None:
    answer = post(CHAT, {"messages": MESSAGES, "max_completion_tokens": 5000})
    assert answer.json()["error"]["message"].startswith("max_completion_tokens is 5000; ")


def test_what_could_never_be_queued_is_no_matter_of_waiting(
    engine: ScriptedEngine, tokenizer: Tokenizer, send_to: Callable[..., httpx.Response]
) -> None:
    limits = SchedulerConfig(max_queued_requests=4, max_queued_tokens=1000)
    app = create_app(Settings(EngineConfig(scheduler=limits), ServerConfig()), engine, tokenizer)
    check_refused(send_to(app, CHAT, {"messages": MESSAGES, "n": 5}), "n")
    check_refused(send_to(app, COMPLETIONS, {"prompt": "a b c d e f g h " * 100, "n": 2}), "n")
    check_refused(send_to(app, COMPLETIONS, {"prompt": ["a"] * 5}), "prompt")
    assert not engine.submits
    assert send_to(app, COMPLETIONS, {"prompt": "a b c d e f g h " * 100}).status_code == 200


def test_scores_of_echoed_prompts_are_bounded(
    engine: ScriptedEngine, tokenizer: Tokenizer, send_to: Callable[..., httpx.Response]
) -> None:
    limits = LimitsConfig(max_prompt_logprobs=60)
    app = create_app(Settings(EngineConfig(limits=limits), ServerConfig()), engine, tokenizer)
    body = {"prompt": [[5] * 10], "echo": True, "logprobs": 2, "n": 2}
    assert send_to(app, COMPLETIONS, body).status_code == 200
    check_refused(send_to(app, COMPLETIONS, {**body, "logprobs": 3}), "logprobs")
    check_refused(send_to(app, COMPLETIONS, {**body, "n": 3}), "logprobs")
    assert send_to(app, COMPLETIONS, {**body, "logprobs": 3, "echo": False}).status_code == 200


def test_an_answer_without_max_tokens_takes_the_room_there_is(post: Post, engine: ScriptedEngine) -> None:
    prompt = [5] * (engine.info.max_context - 3)
    assert post(COMPLETIONS, {"prompt": [prompt]}).status_code == 200
    assert engine.submits[-1].sampling.max_tokens == 3
    check_refused(post(COMPLETIONS, {"prompt": [[*prompt, 5, 5, 5]]}), "prompt")
