"""POST /v1/chat/completions, without a stream."""

from collections.abc import Callable

import httpx
import pytest

from .scripted_engine import ScriptedEngine

Post = Callable[..., httpx.Response]
PATH = "/v1/chat/completions"
MESSAGES = [{"role": "user", "content": "What is the secret code?"}]


def test_answer_in_openai_form(post: Post, engine: ScriptedEngine) -> None:
    engine.cached = 3
    answer = post(PATH, {"model": "needle", "messages": MESSAGES, "user": "someone", "seed": None}).json()
    [submit] = engine.submits
    generated = len(engine.tokenizer.encode(engine.answer, False)) + 1
    assert answer["id"].startswith("chatcmpl-")
    assert answer["object"] == "chat.completion"
    assert answer["choices"] == [
        {
            "index": 0,
            "message": {"role": "assistant", "content": engine.answer, "refusal": None},
            "logprobs": None,
            "finish_reason": "stop",
        }
    ]
    assert answer["usage"] == {
        "prompt_tokens": len(submit.prompt),
        "completion_tokens": generated,
        "total_tokens": len(submit.prompt) + generated,
        "prompt_tokens_details": {"cached_tokens": 3},
    }
    assert submit.prompt == engine.tokenizer.chat(MESSAGES)
    assert submit.sampling.max_tokens is None


def test_length_is_told(post: Post) -> None:
    answer = post(PATH, {"messages": MESSAGES, "max_completion_tokens": 2, "max_tokens": 4}).json()
    assert answer["choices"][0]["finish_reason"] == "length"
    assert answer["usage"]["completion_tokens"] == 2


def test_stop_string_ends_the_text_and_the_engine(post: Post, engine: ScriptedEngine) -> None:
    engine.answer = "one two three four five six"
    answer = post(PATH, {"messages": MESSAGES, "stop": ["never", "three"]}).json()
    assert answer["choices"][0]["message"]["content"] == "one two "
    assert answer["choices"][0]["finish_reason"] == "stop"
    assert engine.aborted == [engine.submits[0].request_id]


def test_stop_string_can_be_kept_and_waits_for_min_tokens(post: Post, engine: ScriptedEngine) -> None:
    engine.answer = "one two one two one"
    tokens = len(engine.tokenizer.encode("one two", False))
    body = {"messages": MESSAGES, "stop": "two", "include_stop_str_in_output": True}
    assert post(PATH, body).json()["choices"][0]["message"]["content"] == "one two"
    body["min_tokens"] = tokens + 1
    assert post(PATH, body).json()["choices"][0]["message"]["content"] == "one two one two"


def test_n_choices_share_one_prompt(post: Post, engine: ScriptedEngine) -> None:
    answer = post(PATH, {"messages": MESSAGES, "n": 3}).json()
    assert [choice["index"] for choice in answer["choices"]] == [0, 1, 2]
    assert len({submit.request_id for submit in engine.submits}) == 3
    assert answer["usage"]["prompt_tokens"] == len(engine.submits[0].prompt)


def test_logprobs(post: Post) -> None:
    answer = post(PATH, {"messages": MESSAGES, "logprobs": True, "top_logprobs": 2}).json()
    content = answer["choices"][0]["logprobs"]["content"]
    assert len(content) == answer["usage"]["completion_tokens"]
    for entry in content:
        assert bytes(entry["bytes"]).decode() == entry["token"]
        assert entry["logprob"] == -0.5
        assert [other["logprob"] for other in entry["top_logprobs"]] == [-0.5, -9999.0]
    assert "".join(entry["token"] for entry in content[:-1]) == answer["choices"][0]["message"]["content"]


@pytest.mark.parametrize("by_server", [True, False])
def test_continue_final_message(
    by_server: bool, make_app: Callable, engine: ScriptedEngine, send_to: Callable[..., httpx.Response]
) -> None:
    messages = [*MESSAGES, {"role": "assistant", "content": "The secret code is"}]
    body = {"messages": messages} | ({} if by_server else {"continue_final_message": True})
    assert send_to(make_app(continue_trailing_assistant=by_server), PATH, body).status_code == 200
    assert engine.submits[0].prompt == engine.tokenizer.chat(messages, continue_final_message=True)


def test_sampling_fields_reach_the_engine(post: Post, engine: ScriptedEngine) -> None:
    fields = {
        "temperature": 0.5,
        "top_p": 0.9,
        "min_p": 0.1,
        "repetition_penalty": 1.1,
        "presence_penalty": 0.5,
        "frequency_penalty": -0.5,
        "seed": -7,
        "min_tokens": 2,
        "ignore_eos": True,
    }
    body = {"messages": MESSAGES, **fields, "top_k": -1, "logit_bias": {"5": 1}, "stop_token_ids": [7]}
    body |= {"priority": -3, "cache_salt": "tenant"}
    assert post(PATH, body).status_code == 200
    [submit] = engine.submits
    assert {name: getattr(submit.sampling, name) for name in fields} == fields
    assert (submit.sampling.top_k, submit.sampling.logit_bias) == (0, {5: 1.0})
    assert (submit.sampling.stop_token_ids, submit.priority, submit.cache_salt) == ((7,), -3, "tenant")


def test_choices_of_one_seed_are_drawn_differently(post: Post, engine: ScriptedEngine) -> None:
    post(PATH, {"messages": MESSAGES, "n": 3, "seed": -7})
    assert [submit.sampling.seed for submit in engine.submits] == [-7, -6, -5]
