"""Models, tokens, health, readiness and metrics."""

import asyncio
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from prometheus_client.parser import text_string_to_metric_families

from .scripted_engine import ScriptedEngine

Get = Callable[[str], httpx.Response]


@pytest.fixture
def get(app: FastAPI, connect: Callable[[FastAPI], httpx.AsyncClient]) -> Get:
    def send(path: str) -> httpx.Response:
        async def run() -> httpx.Response:
            async with connect(app) as client:
                return await client.get(path)

        return asyncio.run(run())

    return send


def samples(text: str) -> dict[str, Any]:
    return {
        sample.name + str(sorted(sample.labels.values())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_models(get: Get, engine: ScriptedEngine) -> None:
    [card] = get("/v1/models").json()["data"]
    assert (card["id"], card["object"], card["max_model_len"]) == ("needle", "model", engine.info.max_context)
    assert get("/v1/models/needle").json() == card
    assert get("/v1/models/org/other").json()["error"]["code"] == "model_not_found"


def test_tokens_there_and_back(post: Callable[..., httpx.Response], engine: ScriptedEngine) -> None:
    text = "The code for Paris is 7301942."
    tokenized = post("/tokenize", {"prompt": text, "add_special_tokens": False}).json()
    assert tokenized["tokens"] == engine.tokenizer.encode(text, False)
    assert tokenized["count"] == len(tokenized["tokens"])
    assert post("/detokenize", {"tokens": tokenized["tokens"]}).json() == {"prompt": text}
    assert post("/detokenize", {"tokens": []}).json() == {"prompt": ""}
    messages = [{"role": "user", "content": text}]
    assert post("/tokenize", {"messages": messages}).json()["tokens"] == engine.tokenizer.chat(messages)


@pytest.mark.parametrize("continues", [{"continue_final_message": True}, {"add_generation_prompt": False}])
def test_a_conversation_has_the_tokens_that_a_chat_answers(
    continues: dict[str, bool], post: Callable[..., httpx.Response], engine: ScriptedEngine
) -> None:
    messages = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "The code is"}]
    body = {"messages": messages, **continues}
    assert post("/v1/chat/completions", body).status_code == 200
    assert post("/tokenize", body).json()["tokens"] == engine.submits[-1].prompt


def test_health_and_readiness(get: Get, app: FastAPI, engine: ScriptedEngine) -> None:
    assert get("/health").json() == get("/ready").json() == {"status": "ok"}
    app.state.service.drain.start()
    assert get("/health").status_code == 200
    assert get("/ready").status_code == 503
    engine.alive = False
    assert get("/health").status_code == 503
    assert get("/health").json()["error"]["code"] == "engine_dead"


def test_no_new_work_while_draining(app: FastAPI, post: Callable[..., httpx.Response]) -> None:
    app.state.service.drain.start()
    answer = post("/v1/completions", {"prompt": "a"})
    assert answer.status_code == 503
    assert answer.json()["error"]["code"] == "draining"


def test_metrics(get: Get, post: Callable[..., httpx.Response], engine: ScriptedEngine) -> None:
    post("/v1/completions", {"prompt": "a", "n": 2, "max_tokens": 4})
    values = samples(get("/metrics").text)
    assert values["vllm:kv_cache_usage_perc['needle']"] == 16 / 64
    pages = {"['cached', 'needle']": 2, "['free', 'needle']": 3, "['needle', 'used']": 1}
    for labels, number in pages.items():
        assert values[f"headway:streaming_pages{labels}"] == number
    assert values["vllm:num_requests_running['needle']"] == 0
    assert values["vllm:prompt_tokens_total['needle']"] == 100
    assert values["vllm:request_success_total['length', 'needle']"] == 2
    assert values["vllm:time_to_first_token_seconds_count['needle']"] == 2
    assert values["vllm:inter_token_latency_seconds_count['needle']"] == 6
    assert values["vllm:e2e_request_latency_seconds_count['needle']"] == 2
    engine.error = ValueError()
    post("/v1/completions", {"prompt": "a"})
    assert samples(get("/metrics").text)["vllm:request_success_total['error', 'needle']"] == 1


def test_clients_cannot_make_labels(get: Get, post: Callable[..., httpx.Response]) -> None:
    for index in range(5):
        get(f"/made/up/{index}")
        get(f"/v1/models/made-up-{index}")
        post(f"/v1/models/{index}", {})
        post("/v1/completions", {"prompt": "a", "model": f"made-up-{index}"})
    text = get("/metrics").text
    assert "made" not in text
    values = samples(text)
    assert values["headway:http_requests_total['404', 'other']"] == 5
    assert values["headway:http_requests_total['/v1/models/{model:path}', '404']"] == 5
    assert values["headway:http_requests_total['/v1/completions', '404']"] == 5
