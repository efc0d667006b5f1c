"""POST /v1/completions, without a stream."""

from collections.abc import Callable

import httpx
import pytest

from .scripted_engine import ScriptedEngine

Post = Callable[..., httpx.Response]
PATH = "/v1/completions"


def test_prompts_in_every_form(post: Post, engine: ScriptedEngine) -> None:
    ids = engine.tokenizer.encode("the code is")
    for prompt in ("the code is", ids, ["the code is"], [ids]):
        assert post(PATH, {"prompt": prompt}).json()["choices"][0]["text"] == engine.answer
    assert [submit.prompt for submit in engine.submits] == [ids] * 4
    assert {submit.sampling.max_tokens for submit in engine.submits} == {16}


def test_choices_of_several_prompts_are_ordered(post: Post, engine: ScriptedEngine) -> None:
    answer = post(PATH, {"prompt": ["a", "b c"], "n": 2, "best_of": 2, "echo": True, "max_tokens": 1}).json()
    assert [choice["index"] for choice in answer["choices"]] == [0, 1, 2, 3]
    first = engine.answer[: len(answer["choices"][0]["text"]) - 1]
    assert [choice["text"] for choice in answer["choices"]] == [p + first for p in ("a", "a", "b c", "b c")]
    prompts = {tuple(submit.prompt) for submit in engine.submits}
    assert answer["usage"]["prompt_tokens"] == sum(map(len, prompts))


def test_echo_with_logprobs_as_lm_eval_reads_it(post: Post, engine: ScriptedEngine) -> None:
    context, continuation = engine.tokenizer.encode("what is"), engine.tokenizer.encode(" the code", False)
    prompt = context + continuation
    answer = post(
        PATH, {"prompt": [prompt], "echo": True, "logprobs": 1, "max_tokens": 1, "temperature": 0, "seed": 1}
    ).json()
    choice = answer["choices"][0]
    logprobs = choice["logprobs"]
    assert {len(values) for values in logprobs.values()} == {len(prompt) + 1}
    assert logprobs["token_logprobs"][0] is None
    assert logprobs["top_logprobs"][0] is None
    # lm-eval's own reading of a log-likelihood answer.
    tokens = logprobs["token_logprobs"][len(context) : -1]
    tops = logprobs["top_logprobs"][len(context) : -1]
    assert tokens == [-0.5] * len(continuation)
    assert all(token == max(top.values()) for token, top in zip(tokens, tops, strict=True))
    assert [
        choice["text"][offset:].startswith(token)
        for offset, token in zip(logprobs["text_offset"], logprobs["tokens"], strict=True)
    ] == [True] * (len(prompt) + 1)


def test_stop_token_is_not_text_and_its_logprob_is_there(post: Post, engine: ScriptedEngine) -> None:
    answer = post(PATH, {"prompt": "x", "logprobs": 0, "max_tokens": 64}).json()
    [choice] = answer["choices"]
    assert choice["text"] == engine.answer
    assert len(choice["logprobs"]["tokens"]) == answer["usage"]["completion_tokens"]


@pytest.mark.parametrize("error_in", ["first", "later"])
def test_an_engine_error_is_a_500_without_details(error_in: str, post: Post, engine: ScriptedEngine) -> None:
    engine.error = ValueError("secret detail at 0x7f")
    engine.fail_after = None if error_in == "first" else 1
    answer = post(PATH, {"prompt": "x", "n": 2})
    assert answer.status_code == 500
    assert answer.json()["error"]["type"] == "server_error"
    assert "secret" not in answer.text
    assert engine.running == 0
