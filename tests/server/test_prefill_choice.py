"""What requests say under `headway.prefill`, and what comes back in `usage.headway.prefill`."""

import json
from collections.abc import Callable
from typing import Any

import httpx
import openai
import pytest
from fastapi import FastAPI

from headway.engine.messages import PrefillUsage, SelectionUsage

from .live import live
from .scripted_engine import ScriptedEngine

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
BODIES = {CHAT: {"messages": [{"role": "user", "content": "hi"}]}, COMPLETIONS: {"prompt": "hi"}}
STREAMING = {"prefill": {"method": "streaming", "dense_tail": 100}}
OFFERED = {"requests": {"methods": ["h2o", "snapkv"], "prefill_methods": ["streaming"]}}

MakeApp = Callable[..., FastAPI]
SendTo = Callable[..., httpx.Response]


@pytest.mark.parametrize("path", [CHAT, COMPLETIONS])
def test_the_engine_is_told_what_was_chosen(
    path: str, make_app: MakeApp, engine: ScriptedEngine, send_to: SendTo
) -> None:
    choice = {"method": "streaming", "dense_tail": 200, "sink_size": None}
    options = {"prefill": choice, "decode": {"method": "snapkv"}}
    assert send_to(make_app(OFFERED), path, BODIES[path] | {"n": 2, "headway": options}).status_code == 200
    assert [(submit.decode, submit.prefill) for submit in engine.submits] == [
        ({"method": "snapkv"}, {"method": "streaming", "dense_tail": 200})
    ] * 2
    engine.submits.clear()
    for nothing in (None, {}, {"prefill": None}):
        assert send_to(make_app(STREAMING), path, BODIES[path] | {"headway": nothing}).status_code == 200
    assert [submit.prefill for submit in engine.submits] == [None] * 3


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("path", [CHAT, COMPLETIONS])
@pytest.mark.parametrize(
    ("options", "param", "told"),
    [
        ({"prefil": {}}, "headway.prefil", "'prefill'"),
        ({"prefill": 5}, "headway.prefill", "object"),
        ({"prefill": {"method": "steaming"}}, "headway.prefill.method", "'streaming'"),
        ({"prefill": {"method": "quest"}}, "headway.prefill.method", "dense, streaming"),
        ({"prefill": {"window": 64}}, "headway.prefill.window", "'window_size'"),
        ({"prefill": {"method": "streaming", "tile": 1}}, "headway.prefill.tile", "configuration"),
        ({"prefill": {"method": "streaming", "dense_tail": "64"}}, "headway.prefill.dense_tail", "integer"),
        ({"prefill": {"method": "streaming", "dense_tail": -1}}, "headway.prefill.dense_tail", "0"),
        (
            {"prefill": {"method": "streaming"}, "decode": {"method": "h2o"}},
            "headway.prefill.method",
            "h2o watches",
        ),
        (
            {"prefill": {"method": "streaming", "dense_tail": 8}, "decode": {"method": "snapkv"}},
            "headway.prefill.dense_tail",
            "at least 32",
        ),
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
    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    assert (error["type"], error["param"]) == ("invalid_request_error", param)
    assert error["message"].startswith(param)
    assert told in error["message"]
    assert not engine.submits


def test_usage_says_what_was_done(make_app: MakeApp, engine: ScriptedEngine, send_to: SendTo) -> None:
    engine.selections = [SelectionUsage(method="quest", steps=1, tokens_per_step=9.0, kv_read_share=0.5)]
    engine.prefills = [PrefillUsage(method="streaming", tokens=3000, density=0.123456789)]
    recipe = STREAMING | {"decode": {"method": "quest"}}
    usage = send_to(make_app(recipe), CHAT, BODIES[CHAT]).json()["usage"]["headway"]
    assert usage.pop("prefill") == {"method": "streaming", "tokens": 3000, "density": 0.12346}
    assert usage["method"] == "quest"
    assert usage["steps"] == 1


def test_usage_of_several_prompts_is_their_sum_and_mean(
    make_app: MakeApp, engine: ScriptedEngine, send_to: SendTo
) -> None:
    engine.prefills = [
        PrefillUsage(method="streaming", tokens=1000, density=0.1),
        PrefillUsage(method="streaming", tokens=3000, density=0.5),
        PrefillUsage(method="streaming"),
    ]
    body = {"prompt": ["a", "b"], "n": 2}
    usage = send_to(make_app(STREAMING), COMPLETIONS, body).json()["usage"]["headway"]
    assert usage == {"method": "dense", "prefill": {"method": "streaming", "tokens": 4000, "density": 0.4}}


@pytest.mark.parametrize(
    ("recipe", "chosen", "expected"),
    [
        ({}, None, None),
        (OFFERED, None, None),
        (STREAMING, None, {"method": "dense", "prefill": {"method": "streaming"}}),
        (STREAMING, {"prefill": {"method": "dense"}}, {"method": "dense", "prefill": {"method": "dense"}}),
        (STREAMING, {"decode": {"method": "dense"}}, {"method": "dense", "prefill": {"method": "streaming"}}),
        (OFFERED, {"prefill": {}}, {"method": "dense", "prefill": {"method": "dense"}}),
        (OFFERED, {"decode": {"method": "h2o"}}, {"method": "h2o"}),
        (
            OFFERED,
            {"prefill": {"method": "streaming"}},
            {"method": "dense", "prefill": {"method": "streaming"}},
        ),
    ],
)
def test_usage_names_the_methods_unless_all_is_dense(
    recipe: Any, chosen: Any, expected: Any, make_app: MakeApp, send_to: SendTo
) -> None:
    usage = send_to(make_app(recipe), CHAT, BODIES[CHAT] | {"headway": chosen}).json()["usage"]
    assert usage.get("headway") == expected


def test_a_streams_last_chunk_says_it_too(make_app: MakeApp, engine: ScriptedEngine) -> None:
    engine.prefills = [PrefillUsage(method="streaming", tokens=3000, density=0.25)]
    body = BODIES[CHAT] | {"stream": True, "stream_options": {"include_usage": True}}
    with live(make_app(STREAMING)) as client:
        lines = [line for line in client.post(CHAT, json=body).text.splitlines() if line]
    usage = json.loads(lines[-2].removeprefix("data: "))["usage"]
    assert usage["headway"]["prefill"] == {"method": "streaming", "tokens": 3000, "density": 0.25}


def test_metrics_count_by_method(make_app: MakeApp, engine: ScriptedEngine) -> None:
    engine.prefills = [PrefillUsage(method="streaming", tokens=3000, density=0.25)] * 2
    with live(make_app(STREAMING)) as client:
        client.post(CHAT, json=BODIES[CHAT] | {"n": 3})
        text = client.get("/metrics").text
    for name, value in (("sparse_prefill_tokens", 6000), ("sparse_prefill_density_tokens", 1500)):
        assert f'headway:{name}_total{{method="streaming",model_name="needle"}} {float(value)}' in text


def test_the_document_says_what_this_server_offers(make_app: MakeApp) -> None:
    for path in ("ChatRequest", "CompletionRequest"):
        field = make_app(OFFERED).openapi()["components"]["schemas"][path]["properties"]["headway"]
        [dense, streaming, null] = field["anyOf"][0]["properties"]["prefill"]["anyOf"]
        assert (dense["title"], streaming["title"], null) == ("dense", "streaming", {"type": "null"})
        assert streaming["required"] == ["method"]
        assert streaming["properties"]["dense_tail"]["default"] == 64
        assert "tile" not in streaming["properties"]


def test_the_openai_client_chooses_and_reads_both(make_app: MakeApp, engine: ScriptedEngine) -> None:
    engine.prefills = [PrefillUsage(method="streaming", tokens=3000, density=0.25)]
    with live(make_app(OFFERED)) as http:
        client = openai.OpenAI(base_url=f"{http.base_url}/v1", api_key="none", max_retries=0)
        options = {"decode": {"method": "snapkv"}, "prefill": {"method": "streaming", "dense_tail": 128}}
        answer = client.chat.completions.create(
            model="needle",
            messages=[{"role": "user", "content": "hi"}],
            extra_body={"headway": options},
        )
        with pytest.raises(openai.BadRequestError) as refused:
            client.completions.create(
                model="needle", prompt="hi", extra_body={"headway": {"prefill": {"method": "moba"}}}
            )
    assert answer.usage is not None
    assert answer.usage.model_extra is not None
    assert answer.usage.model_extra["headway"] == {
        "method": "snapkv",
        "prefill": {"method": "streaming", "tokens": 3000, "density": 0.25},
    }
    assert refused.value.param == "headway.prefill.method"
    assert engine.submits[0].prefill == options["prefill"]
