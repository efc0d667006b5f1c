"""Both clients around a real tiny model: the same answers as generate(), and the same behaviour when left."""

import asyncio
import contextlib
import random
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from transformers.utils import logging as transformers_logging

from headway.engine.config import EngineConfig
from headway.engine.config_section import parse
from headway.engine.errors import ContextTooLong, HeadwayError, QueueFull, RequestError
from headway.engine.in_process_client import InProcessClient
from headway.engine.mailbox_client import MailboxClient
from headway.engine.messages import Progress, RequestEvent, SamplingParams, Submit, Tokens
from headway.engine.process_client import ProcessClient

from .models.families import VOCAB, build, save

PAGE = 16
DOCUMENT = [random.Random(0).randrange(2, VOCAB) for _ in range(300)]


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> EngineConfig:
    transformers_logging.disable_progress_bar()
    folder = save("llama", tmp_path_factory.mktemp("clients"))
    return parse(
        EngineConfig,
        {
            "model": {"name": str(folder), "threads": 1, "served_name": "tiny"},
            "cache": {"memory_gib": 0.005, "page_size": PAGE},
            "scheduler": {"max_step_tokens": 64, "max_running": 16, "max_queued_requests": 32},
        },
    )


@pytest.fixture(scope="module", params=[InProcessClient, ProcessClient])
def client(request: pytest.FixtureRequest, config: EngineConfig) -> Iterator[MailboxClient]:
    client = request.param(config)
    yield client
    asyncio.run(client.close())
    assert not client.is_alive()


def submit(name: str, prompt: list[int], max_tokens: int = 8, **options: object) -> Submit:
    sampling = SamplingParams(temperature=0.0, max_tokens=max_tokens, ignore_eos=True)
    return Submit(request_id=name, prompt=prompt, sampling=sampling, **options)


async def collect(client: MailboxClient, request: Submit) -> list[RequestEvent]:
    return [event async for event in client.generate(request)]


def tokens(events: list[RequestEvent]) -> list[int]:
    return [token for event in events if isinstance(event, Tokens) for token in event.token_ids]


def generated(prompt: list[int], max_tokens: int = 8) -> list[int]:
    """What Hugging Face's own generate() answers."""
    model = build("llama")
    ids = torch.tensor([prompt])
    with torch.inference_mode():
        answer = model.generate(ids, max_new_tokens=max_tokens, do_sample=False, eos_token_id=None)
    return answer[0, len(prompt) :].tolist()


async def settled(client: MailboxClient) -> None:
    """Until the engine says that it has nothing to do."""
    seen = client.stats().steps_total
    for _ in range(100):
        await asyncio.sleep(0.1)
        stats = client.stats()
        if stats.running == stats.waiting == 0 and stats.steps_total == seen and seen:
            return
        seen = stats.steps_total
    raise AssertionError(f"the engine does not come to rest: {client.stats()}")


def test_greedy_answers_are_those_of_generate(client: MailboxClient) -> None:
    for length in (1, PAGE, 200):
        events = asyncio.run(collect(client, submit(f"greedy{length}", DOCUMENT[:length], progress=True)))
        assert tokens(events) == generated(DOCUMENT[:length])
        assert isinstance(events[0], Progress)
        assert events[-1].finish_reason == "length"


def test_info_tells_what_fits(client: MailboxClient) -> None:
    info = client.info
    assert (info.name, info.vocab_size, info.dtype, info.device) == ("tiny", VOCAB, "float32", "cpu")
    assert info.max_context == min(512, info.num_pages * PAGE)
    assert f"longest prompt that fits: {info.max_context - 1} tokens" in info.plan


def test_users_in_parallel_never_see_each_other(client: MailboxClient) -> None:
    """Prefixes shared up to, before and behind page borders; each user's own marker behind them."""
    prompts = {
        f"user{n}": [*DOCUMENT[:cut], 2 + n, 3 + n, 2 + n]
        for n, cut in enumerate([0, 5 * PAGE - 1, 5 * PAGE, 5 * PAGE + 1, 200, 201, 207, 208] * 2)
    }

    async def all_at_once() -> dict[str, list[int]]:
        requests = [submit(name, prompt, cache_salt=name[-1:]) for name, prompt in prompts.items()]
        answers = await asyncio.gather(*(collect(client, request) for request in requests))
        await settled(client)
        return {request.request_id: tokens(events) for request, events in zip(requests, answers, strict=True)}

    answers = asyncio.run(all_at_once())
    assert answers == {name: generated(prompt) for name, prompt in prompts.items()}
    assert client.stats().pages_used == 0


def test_a_second_question_about_a_document_is_cheap(client: MailboxClient) -> None:
    for name in ("first", "second"):
        events = asyncio.run(collect(client, submit(name, DOCUMENT[:250], cache_salt="question")))
    assert events[0].cached_tokens == 250 // PAGE * PAGE


def test_leaving_ends_the_request(client: MailboxClient) -> None:
    async def leave() -> None:
        before = client.stats().generated_tokens_total
        stream = client.generate(submit("left", DOCUMENT[:20], max_tokens=400))
        await anext(stream)
        await stream.aclose()
        await settled(client)
        assert client.stats().pages_used == 0
        assert client.stats().generated_tokens_total - before < 400

    asyncio.run(leave())


def test_an_aborted_request_has_a_last_event(client: MailboxClient) -> None:
    async def abort() -> None:
        stream = client.generate(submit("aborted", DOCUMENT[:20], max_tokens=400))
        await anext(stream)
        client.abort("aborted")
        *_, last = [event async for event in stream]
        assert (last.finish_reason, last.token_ids) == ("abort", [])
        client.abort("aborted")
        await settled(client)
        assert client.stats().pages_used == 0

    asyncio.run(abort())


def test_leaving_by_cancellation_ends_the_request(client: MailboxClient) -> None:
    async def cancel() -> None:
        task = asyncio.create_task(collect(client, submit("cancelled", DOCUMENT[:20], max_tokens=400)))
        await asyncio.sleep(0.1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await settled(client)
        assert client.stats().pages_used == 0

    asyncio.run(cancel())


def test_a_slow_reader_blocks_nobody(client: MailboxClient) -> None:
    async def slow_and_fast() -> None:
        slow = client.generate(submit("slow", DOCUMENT[:30], max_tokens=50))
        received = [await anext(slow)]
        for n in range(3):
            assert len(tokens(await collect(client, submit(f"fast{n}", DOCUMENT[:9])))) == 8
        received += [event async for event in slow]
        assert tokens(received) == generated(DOCUMENT[:30], 50)

    asyncio.run(slow_and_fast())


@pytest.mark.parametrize(
    ("options", "kind"),
    [
        ({"prompt": []}, RequestError),
        ({"prompt": [VOCAB]}, RequestError),
        ({"prompt": [2] * 512}, ContextTooLong),
        ({"sampling": SamplingParams(temperature=float("nan"))}, RequestError),
        ({"sampling": SamplingParams(max_tokens=0)}, ContextTooLong),
    ],
)
def test_a_wrong_request_is_refused(client: MailboxClient, options: dict, kind: type[Exception]) -> None:
    request = Submit(**{"request_id": "wrong", "prompt": [2], "sampling": SamplingParams(), **options})
    with pytest.raises(kind) as refusal:
        asyncio.run(collect(client, request))
    assert refusal.value.field in {"prompt", "temperature", "max_tokens"}
    assert client.is_alive()


@pytest.mark.parametrize(
    "options",
    [
        {"cache_salt": "\ud800"},
        {"priority": 2**70},
        {"prompt": ["x"]},
        {"prompt": None},
        {"sampling": SamplingParams(seed=2**70)},
        {"sampling": SamplingParams(temperature="warm")},
        {"sampling": SamplingParams(stop_token_ids=5)},
    ],
)
def test_rubbish_ends_its_request_only(client: MailboxClient, options: dict) -> None:
    """What the HTTP layer lets nobody send, a caller of the Python API may."""
    request = Submit(**{"request_id": "rubbish", "prompt": [2], "sampling": SamplingParams(), **options})

    async def send() -> None:
        with contextlib.suppress(HeadwayError):
            await anext(client.generate(request))

    asyncio.run(asyncio.wait_for(send(), 20))
    events = asyncio.run(collect(client, submit("after", DOCUMENT[:9])))
    assert tokens(events) == generated(DOCUMENT[:9])


def test_an_id_in_use_is_refused(client: MailboxClient) -> None:
    async def twice() -> None:
        first = client.generate(submit("same", DOCUMENT[:9], max_tokens=100))
        await anext(first)
        with pytest.raises(RequestError, match="this id"):
            await collect(client, submit("same", DOCUMENT[:9]))
        assert len(tokens([event async for event in first])) == 99

    asyncio.run(twice())


def test_a_full_queue_refuses_with_a_time_to_wait(client: MailboxClient) -> None:
    async def flood() -> list[object]:
        requests = [submit(f"flood{n}", DOCUMENT[n : n + 150], max_tokens=2) for n in range(120)]
        return await asyncio.gather(*(collect(client, r) for r in requests), return_exceptions=True)

    results = asyncio.run(flood())
    refused = [result for result in results if isinstance(result, QueueFull)]
    assert refused
    assert all(error.retry_after >= 1 for error in refused)
    assert all(isinstance(result, list | QueueFull) for result in results)


def test_the_sockets_are_private(client: MailboxClient) -> None:
    if isinstance(client, ProcessClient):
        folder: Path = client.folder
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        assert {path.name for path in folder.iterdir()} == {"requests", "events"}
