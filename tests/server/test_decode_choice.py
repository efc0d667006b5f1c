"""What requests say under `headway.decode`, and what comes back in `usage.headway`."""

import json
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from headway.engine.errors import EngineDead, RequestError
from headway.engine.messages import PrefillUsage, SelectionUsage

from .live import live
from .scripted_engine import ScriptedEngine

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
BODIES = {CHAT: {"messages": [{"role": "user", "content": "hi"}]}, COMPLETIONS: {"prompt": "hi"}}
QUEST = {"decode": {"method": "quest", "budget": 1024}}
OFFERED = {"requests": {"methods": ["quest"], "max_budget": 4096, "max_fraction": 0.5}}

MakeApp = Callable[..., FastAPI]
SendTo = Callable[..., httpx.Response]


def error_of(answer: httpx.Response) -> dict[str, Any]:
    assert answer.status_code == 400, answer.text
    error: dict[str, Any] = answer.json()["error"]
    assert error["type"] == "invalid_request_error"
    return error


@pytest.mark.parametrize("path", [CHAT, COMPLETIONS])
def test_the_engine_is_told_what_was_chosen(
    path: str, make_app: MakeApp, engine: ScriptedEngine, send_to: SendTo
) -> None:
    app = make_app(OFFERED)
    choice = {"method": "quest", "budget": 512, "fraction": 0.5, "mass": 1, "dense_layers": None}
    body = BODIES[path] | {"n": 3, "headway": {"decode": choice}}
    assert send_to(app, path, body).status_code == 200
    assert [submit.decode for submit in engine.submits] == [
        {"method": "quest", "budget": 512, "fraction": 0.5, "mass": 1.0}
    ] * 3
    engine.submits.clear()
    for nothing in (None, {}, {"decode": None}):
        assert send_to(app, path, BODIES[path] | {"headway": nothing}).status_code == 200
    assert [submit.decode for submit in engine.submits] == [None] * 3


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("path", [CHAT, COMPLETIONS])
@pytest.mark.parametrize(
    ("options", "param", "told"),
    [
        (5, "headway", ""),
        ([], "headway", ""),
        ({"decod": {}}, "headway.decod", "'decode'"),
        ({"x" * 5000: None}, "headway.xxx", "decode, prefill"),
        ({"decode": 5}, "headway.decode", "object"),
        ({"decode": ["quest"]}, "headway.decode", "object"),
        ({"decode": {"method": "quets"}}, "headway.decode.method", "'quest'"),
        ({"decode": {"method": "streaming"}}, "headway.decode.method", "dense, quest"),
        ({"decode": {"method": ["quest"]}}, "headway.decode.method", "quest"),
        ({"decode": {"budget": 64}}, "headway.decode.budget", "dense"),
        ({"decode": {"method": "quest", "budgett": 64}}, "headway.decode.budgett", "'budget'"),
        ({"decode": {"method": "quest", "budget": 4097}}, "headway.decode.budget", "4096"),
        ({"decode": {"method": "quest", "fraction": 0.51}}, "headway.decode.fraction", "at most 0.5 here"),
        ({"decode": {"method": "quest", "budget": "64"}}, "headway.decode.budget", "integer"),
        ({"decode": {"method": "quest", "budget": 10**40}}, "headway.decode.budget", ""),
        ({"decode": {"method": "quest", "unit": 32}}, "headway.decode", "bounds"),
    ],
)
def test_what_is_wrong_is_a_400_that_names_the_field(
    options: Any,
    param: str,
    told: str,
    path: str,
    stream: bool,
    make_app: MakeApp,
    engine: ScriptedEngine,
    send_to: SendTo,
) -> None:
    answer = send_to(make_app(OFFERED), path, BODIES[path] | {"headway": options, "stream": stream})
    error = error_of(answer)
    assert error["param"] == param or (param == "headway.xxx" and error["param"].startswith(param))
    assert told in error["message"]
    assert error["message"].startswith(error["param"])
    assert len(error["message"]) < 600
    assert not engine.submits


@pytest.mark.parametrize("stream", [False, True])
def test_the_engines_refusal_names_the_field_before_a_stream_begins(
    stream: bool, make_app: MakeApp, engine: ScriptedEngine
) -> None:
    engine.error = RequestError("headway.decode: needs another page size", "headway.decode")
    with live(make_app(OFFERED)) as client:
        body = BODIES[CHAT] | {"headway": QUEST, "stream": stream}
        assert error_of(client.post(CHAT, json=body))["param"] == "headway.decode"


def test_usage_says_what_was_done(make_app: MakeApp, engine: ScriptedEngine, send_to: SendTo) -> None:
    done = SelectionUsage(method="quest", steps=8, tokens_per_step=512.125, kv_read_share=0.25, refreshes=3)
    engine.selections = [done]
    usage = send_to(make_app(QUEST), CHAT, BODIES[CHAT]).json()["usage"]
    assert usage["headway"] == {
        "method": "quest",
        "steps": 8,
        "tokens_per_step": 512.12,
        "kv_read_share": 0.25,
        "refreshes": 3,
    }


@pytest.mark.parametrize("stream", [False, True])
def test_a_stop_string_leaves_the_counts_there(
    stream: bool, make_app: MakeApp, engine: ScriptedEngine
) -> None:
    engine.answer = "one two three four five"
    engine.selections = [SelectionUsage(method="quest", steps=3, tokens_per_step=9.0, kv_read_share=0.5)]
    engine.prefills = [PrefillUsage(method="streaming", tokens=7, density=0.25)]
    engine.full_layers = [(1,)]
    recipe = QUEST | {"prefill": {"method": "streaming"}}
    body = BODIES[CHAT] | {"stop": "three", "stream": stream}
    with live(make_app(recipe)) as client:
        answer = client.post(
            CHAT, json=body | ({"stream_options": {"include_usage": True}} if stream else {})
        )
        metrics = client.get("/metrics").text
    lines = [line for line in answer.text.splitlines() if line]
    usage = json.loads(lines[-2].removeprefix("data: ") if stream else answer.text)["usage"]
    assert usage["headway"] == {
        "method": "quest",
        "steps": 3,
        "tokens_per_step": 9.0,
        "kv_read_share": 0.5,
        "refreshes": 0,
        "prefill": {"method": "streaming", "tokens": 7, "density": 0.25},
        "full_layers": [1],
    }
    assert len(engine.aborted) == 1
    assert 'headway:selection_steps_total{method="quest",model_name="needle"} 3.0' in metrics
    assert 'vllm:request_success_total{finished_reason="stop",model_name="needle"} 1.0' in metrics


@pytest.mark.parametrize("stream", [False, True])
def test_an_engine_that_dies_at_a_stop_string_leaves_the_text(
    stream: bool, make_app: MakeApp, engine: ScriptedEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def dead(_: str) -> None:
        raise EngineDead("gone")

    monkeypatch.setattr(engine, "abort", dead)
    with live(make_app(QUEST)) as client:
        answer = client.post(CHAT, json=BODIES[CHAT] | {"stop": "code", "stream": stream})
    assert "gone" not in answer.text
    assert '"finish_reason":"stop"' in answer.text


def test_usage_of_several_choices_is_their_sum_and_mean(
    make_app: MakeApp, engine: ScriptedEngine, send_to: SendTo
) -> None:
    engine.selections = [
        SelectionUsage(method="quest", steps=1, tokens_per_step=100.0, kv_read_share=0.1, refreshes=1),
        SelectionUsage(method="quest", steps=3, tokens_per_step=200.0, kv_read_share=0.5, refreshes=2),
        SelectionUsage(method="quest"),
        SelectionUsage(method="quest"),
    ]
    body = {"prompt": ["a", "b"], "n": 2}
    usage = send_to(make_app(QUEST), COMPLETIONS, body).json()["usage"]
    # 100 of 1000 tokens, and three times 200 of 400.
    assert usage["headway"] == {
        "method": "quest",
        "steps": 4,
        "tokens_per_step": 175.0,
        "kv_read_share": round(700 / 2200, 5),
        "refreshes": 3,
    }


@pytest.mark.parametrize(
    ("decided", "told"),
    [([(2,)] * 4, [2]), ([(2,), (2,), (0, 5), (0, 5)], [0, 2, 5]), ([()] * 4, []), ([], None)],
)
def test_usage_tells_the_layers_that_a_router_let_read_everything(
    decided: list[tuple[int, ...]],
    told: list[int] | None,
    make_app: MakeApp,
    engine: ScriptedEngine,
    send_to: SendTo,
) -> None:
    engine.full_layers = decided
    usage = send_to(make_app({}), COMPLETIONS, {"prompt": ["a", "b"], "n": 2}).json()["usage"]
    assert usage.get("headway") == (None if told is None else {"method": "dense", "full_layers": told})


@pytest.mark.parametrize(
    ("recipe", "chosen", "method"),
    [
        ({}, None, None),
        (OFFERED, None, None),
        (QUEST, None, "quest"),
        (QUEST, {"budget": 700}, "quest"),
        (QUEST, {"method": "dense"}, "dense"),
        ({}, {"method": "dense"}, "dense"),
        (OFFERED, {"method": "quest"}, "quest"),
    ],
)
def test_usage_names_the_method_unless_all_is_dense(
    recipe: Any, chosen: Any, method: str | None, make_app: MakeApp, send_to: SendTo
) -> None:
    body = BODIES[CHAT] | {"headway": {"decode": chosen}, "stop": "secret"}
    usage = send_to(make_app(recipe), CHAT, body).json()["usage"]
    assert usage.get("headway") == (None if method is None else {"method": method})
    assert ("headway" in usage) is (method is not None)


def test_a_streams_last_chunk_says_it_too(make_app: MakeApp, engine: ScriptedEngine) -> None:
    engine.selections = [SelectionUsage(method="quest", steps=5, tokens_per_step=9.0, kv_read_share=0.5)]
    body = BODIES[CHAT] | {"stream": True, "stream_options": {"include_usage": True}}
    with live(make_app(QUEST)) as client:
        lines = [line for line in client.post(CHAT, json=body).text.splitlines() if line]
    usage = json.loads(lines[-2].removeprefix("data: "))["usage"]
    assert (usage["headway"]["steps"], usage["headway"]["kv_read_share"]) == (5, 0.5)
    assert "headway" not in json.loads(lines[0].removeprefix("data: "))


def test_metrics_count_by_method(make_app: MakeApp, engine: ScriptedEngine) -> None:
    engine.selections = [
        SelectionUsage(method="quest", steps=5, tokens_per_step=100.0, kv_read_share=0.25, refreshes=2)
    ] * 2
    with live(make_app(QUEST)) as client:
        client.post(CHAT, json=BODIES[CHAT] | {"n": 3})
        text = client.get("/metrics").text
    for name, value in (
        ("selection_steps", 10),
        ("attended_tokens", 1000),
        ("context_tokens", 4000),
        ("selection_refreshes", 4),
    ):
        assert f'headway:{name}_total{{method="quest",model_name="needle"}} {float(value)}' in text


def test_the_document_says_what_this_server_offers(make_app: MakeApp) -> None:
    for path in ("ChatRequest", "CompletionRequest"):
        field = make_app(OFFERED).openapi()["components"]["schemas"][path]["properties"]["headway"]
        [dense, quest, null] = field["anyOf"][0]["properties"]["decode"]["anyOf"]
        assert (dense["title"], quest["title"], null) == ("dense", "quest", {"type": "null"})
        assert dense["required"] == []
        assert quest["required"] == ["method"]
        assert quest["properties"]["budget"]["anyOf"][0]["maximum"] == 4096
        assert quest["properties"]["fraction"]["anyOf"][0]["maximum"] == 0.5
        assert quest["properties"]["budget"]["default"] == 2048
        own = make_app(QUEST).openapi()["components"]["schemas"][path]["properties"]["headway"]
        [dense, quest, _] = own["anyOf"][0]["properties"]["decode"]["anyOf"]
        assert (quest["required"], dense["required"]) == ([], ["method"])
        assert quest["properties"]["budget"]["default"] == 1024
