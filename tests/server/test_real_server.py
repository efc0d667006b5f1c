"""`headway serve` with needle in a real process, asked by the real openai client."""

import json
import os
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import openai
import pytest

from .live import wait_for
from .process import ServerProcess, serve

KEY = "a-key-for-tests"
FILLER = "The grass is green. The sky is blue. The sun is yellow. Here we go. "
QUESTION = "What is the secret code for Paris?"


def document(sentences: int) -> str:
    half = FILLER * (sentences // 2)
    return f"{half}The secret code for Paris is 7301942. {half}\n\n{QUESTION}"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    folder = tmp_path_factory.mktemp("server")
    config = folder / "headway.yaml"
    config.write_text(
        "recipe: {requests: {methods: [quest, h2o], prefill_methods: [streaming], max_budget: 2048}}"
    )
    options = ("--memory", "0.1", "--config", str(config))
    with serve(folder, *options, HEADWAY_API_KEYS=KEY) as running:
        yield running


@pytest.fixture
def client(server: ServerProcess) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.http.base_url}/v1", api_key=KEY, max_retries=0)


def ask(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def test_banner_says_what_needle_is(server: ServerProcess) -> None:
    banner = server.log.read_text()
    assert "knows nothing else" in banner
    assert "longest prompt" in banner
    assert "dense; requests may choose h2o, quest" in banner
    assert KEY not in banner


def test_chat(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model="needle", messages=ask(document(40)), temperature=0, max_tokens=24
    )
    assert answer.choices[0].message.content
    assert answer.usage is not None
    again = client.chat.completions.create(
        model="needle", messages=ask(document(40)), temperature=0, max_tokens=24
    )
    assert again.choices[0].message.content == answer.choices[0].message.content
    assert again.usage is not None
    assert again.usage.prompt_tokens_details is not None
    assert again.usage.prompt_tokens_details.cached_tokens is not None
    assert again.usage.prompt_tokens_details.cached_tokens > 256


def test_streams_are_the_same_text(client: openai.OpenAI) -> None:
    options = {"model": "needle", "messages": ask(document(8)), "seed": 5, "max_tokens": 12}
    whole = client.chat.completions.create(**options)
    stream = client.chat.completions.create(
        **options, stream=True, stream_options={"include_usage": True}, extra_body={"ignore_eos": False}
    )
    *chunks, last = list(stream)
    assert (
        "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == whole.choices[0].message.content
    )
    assert last.choices == []
    assert last.usage == whole.usage or last.usage.completion_tokens == whole.usage.completion_tokens
    assert len(chunks) == whole.usage.completion_tokens


def test_logprobs_and_n(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model="needle",
        messages=ask(document(8)),
        n=2,
        temperature=0,
        logprobs=True,
        top_logprobs=3,
        max_tokens=6,
    )
    assert len(answer.choices) == 2
    assert answer.choices[0].message == answer.choices[1].message
    for choice in answer.choices:
        assert choice.logprobs is not None
        assert choice.logprobs.content is not None
        for entry in choice.logprobs.content:
            assert entry.top_logprobs[0].logprob == entry.logprob  # greedy: the best one was chosen
            assert len(entry.top_logprobs) == 3


def test_echoed_logprobs_of_a_completion(client: openai.OpenAI, server: ServerProcess) -> None:
    tokens = server.http.post("/tokenize", json={"prompt": document(4)}).json()["tokens"]
    answer = client.completions.create(
        model="needle", prompt=[tokens], echo=True, logprobs=1, max_tokens=1, temperature=0
    )
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None
    assert len(logprobs.token_logprobs or []) == len(tokens) + 1
    assert all(value <= 0 for value in (logprobs.token_logprobs or [])[1:])
    tops = (logprobs.top_logprobs or [])[1:]
    assert all(
        value <= max(top.values()) for value, top in zip(logprobs.token_logprobs[1:], tops, strict=True)
    )


def test_errors_are_the_clients_exceptions(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        client.completions.create(model="needle", prompt="a", temperature=-1)
    assert refused.value.param == "temperature"
    with pytest.raises(openai.NotFoundError):
        client.completions.create(model="gpt-9", prompt="a")
    with pytest.raises(openai.AuthenticationError):
        openai.OpenAI(base_url=client.base_url, api_key="wrong").models.list()
    with pytest.raises(openai.BadRequestError) as too_long:
        client.completions.create(model="needle", prompt="one two " * 100_000)
    assert too_long.value.code == "context_length_exceeded"
    assert [model.id for model in client.models.list()] == ["needle"]


def metric(server: ServerProcess, name: str) -> float:
    text = server.http.get("/metrics").text
    [line] = [line for line in text.splitlines() if line.startswith(f"{name}{{")]
    return float(line.split()[-1])


def running(server: ServerProcess) -> float:
    return metric(server, "vllm:num_requests_running")


def choose(**choice: object) -> dict[str, object]:
    return {"extra_body": {"headway": {"decode": choice}}}


def test_requests_of_one_batch_choose_what_they_read(client: openai.OpenAI, server: ServerProcess) -> None:
    options = {"model": "needle", "messages": ask(document(300)), "temperature": 0, "max_tokens": 24}
    dense = client.chat.completions.create(**options, **choose(method="dense"))
    assert dense.usage.prompt_tokens > 5000
    assert dense.usage.model_extra["headway"] == {"method": "dense"}
    own = client.chat.completions.create(**options)
    assert "headway" not in own.usage.model_extra
    quest = choose(method="quest", budget=640, dense_below=1024, dense_layers=1)
    with ThreadPoolExecutor() as pool:
        once = pool.submit(client.chat.completions.create, **options, **quest)
        twice = pool.submit(client.chat.completions.create, **options, n=2, **quest)
        again = pool.submit(client.chat.completions.create, **options, **choose(method="dense"))
    texts = [choice.message.content for job in (once, twice, again) for choice in job.result().choices]
    assert texts == [own.choices[0].message.content] * 4
    read, both = (job.result().usage.model_extra["headway"] for job in (once, twice))
    assert read["method"] == "quest"
    assert read["steps"] == once.result().usage.completion_tokens - 1
    assert both["steps"] == 2 * read["steps"]
    assert both["kv_read_share"] == pytest.approx(read["kv_read_share"])
    # needle's first layer reads everything, the others their budget.
    assert 640 < read["tokens_per_step"] < dense.usage.prompt_tokens / 2
    assert 0.1 < read["kv_read_share"] < 0.5
    assert metric(server, "headway:selection_steps_total") == 3 * read["steps"]


def test_requests_choose_what_their_prompts_read(client: openai.OpenAI, server: ServerProcess) -> None:
    options = {"model": "needle", "messages": ask(document(301)), "temperature": 0, "max_tokens": 4}
    prefill = {"method": "streaming", "dense_below": 1024, "window_size": 512}
    salt = {"cache_salt": "sparse"}
    both = {"prefill": prefill, "decode": {"method": "quest", "budget": 640, "dense_below": 0}}
    first = client.chat.completions.create(**options, extra_body={"headway": both, **salt})
    read = first.usage.model_extra["headway"]
    assert read["method"] == "quest"
    assert read["prefill"]["method"] == "streaming"
    assert 0 < read["prefill"]["tokens"] <= first.usage.prompt_tokens
    assert 0.05 < read["prefill"]["density"] < 0.7
    assert metric(server, "headway:sparse_prefill_tokens_total") == read["prefill"]["tokens"]
    again = client.chat.completions.create(**options, extra_body={"headway": both, **salt})
    assert again.choices[0].message == first.choices[0].message
    assert again.usage.prompt_tokens_details.cached_tokens > first.usage.prompt_tokens - 512
    assert again.usage.model_extra["headway"]["prefill"]["tokens"] < 512
    # What was read sparsely is nothing for a dense prompt to go on with.
    dense = client.chat.completions.create(**options, extra_body=salt)
    assert dense.usage.prompt_tokens_details.cached_tokens == 0


def test_what_does_not_go_together_is_the_clients_mistake(client: openai.OpenAI) -> None:
    headway = {"prefill": {"method": "streaming"}, "decode": {"method": "h2o"}}
    with pytest.raises(openai.BadRequestError) as refused:
        client.completions.create(model="needle", prompt="a", extra_body={"headway": headway})
    assert refused.value.param == "headway.prefill.method"


def test_streams_say_what_was_read(client: openai.OpenAI) -> None:
    *_, last = client.completions.create(
        model="needle",
        prompt=[document(100), document(101)],
        stream=True,
        stream_options={"include_usage": True},
        max_tokens=4,
        extra_body={"ignore_eos": True, **choose(method="quest", budget=400, dense_below=0)["extra_body"]},
    )
    read = last.usage.model_extra["headway"]
    assert (read["method"], read["steps"]) == ("quest", 6)
    assert read["kv_read_share"] < 1


def test_a_stop_string_ends_the_answer_with_its_counts(client: openai.OpenAI) -> None:
    prefill = {"method": "streaming", "dense_below": 512}
    headway = {"prefill": prefill, "decode": {"method": "quest", "budget": 640, "dense_below": 0}}
    options = {"model": "needle", "messages": ask(document(101)), "temperature": 0}
    whole = client.chat.completions.create(**options, extra_body={"headway": headway, "cache_salt": "whole"})
    text = whole.choices[0].message.content
    stopped = client.chat.completions.create(
        **options, stop=text[2:4], extra_body={"headway": headway, "cache_salt": "stopped"}
    )
    assert stopped.choices[0].message.content == text[:2]
    assert stopped.choices[0].finish_reason == "stop"
    said, read = (answer.usage.model_extra["headway"] for answer in (whole, stopped))
    assert stopped.usage.completion_tokens - 1 <= read["steps"] <= said["steps"]
    assert read["prefill"] == said["prefill"]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("choice", "param"),
    [
        ({"method": "loki"}, "headway.decode.method"),
        ({"method": "quest", "budget": 5000}, "headway.decode.budget"),
        ({"method": "quest", "bugdet": 500}, "headway.decode.bugdet"),
    ],
)
def test_what_is_not_offered_is_the_clients_mistake(
    choice: dict[str, object], param: str, stream: bool, client: openai.OpenAI
) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        client.chat.completions.create(model="needle", messages=ask("a"), stream=stream, **choose(**choice))
    assert refused.value.param == param


def test_leaving_during_a_long_prefill_frees_the_engine(client: openai.OpenAI, server: ServerProcess) -> None:
    stream = client.chat.completions.create(
        model="needle",
        messages=ask(document(1600)),
        stream=True,
        extra_body={"stream_options": {"include_progress": True}},
    )
    first = next(iter(stream))
    assert first.choices == []
    assert first.model_extra["headway"]["prefill"]["total"] > 20_000
    stream.close()
    wait_for(lambda: running(server) == 0)
    answer = client.completions.create(model="needle", prompt="a", max_tokens=1)
    assert answer.choices[0].finish_reason in {"length", "stop"}


@pytest.mark.slow
def test_a_dead_engine_is_told_and_ends_the_server(tmp_path: Path) -> None:
    with serve(tmp_path, "--memory", "0.1") as server:
        children = Path(f"/proc/{server.process.pid}/task/{server.process.pid}/children").read_text().split()
        [engine] = [
            child for child in children if b"process_main" in Path(f"/proc/{child}/cmdline").read_bytes()
        ]
        os.kill(int(engine), signal.SIGKILL)
        wait_for(lambda: server.http.get("/health").status_code == 503)
        answer = server.http.post("/v1/completions", json={"prompt": "a"})
        assert answer.status_code == 503
        assert json.loads(answer.text)["error"]["code"] == "engine_dead"
        assert server.process.wait(30) == 1  # whoever started it shall know
        assert "the engine has ended or hangs" in server.log.read_text()


def test_sigterm_lets_running_requests_finish(server: ServerProcess) -> None:
    """The last test of the shared server."""
    received: list[str] = []

    def read() -> None:
        body = {"prompt": "a", "max_tokens": 300, "ignore_eos": True, "stream": True}
        with server.http.stream("POST", "/v1/completions", json=body) as answer:
            received.extend(line for line in answer.iter_lines() if line)

    reader = threading.Thread(target=read)
    reader.start()
    wait_for(lambda: bool(received))
    server.process.send_signal(signal.SIGTERM)
    wait_for(lambda: server.http.get("/ready").status_code == 503)
    assert server.http.get("/health").status_code == 200
    refused = server.http.post("/v1/completions", json={"prompt": "a"})
    assert refused.json()["error"]["code"] == "draining"
    reader.join(60)
    assert received[-1] == "data: [DONE]"
    assert len(received) == 301
    assert server.process.wait(60) == 0
