"""Encoding, decoding, and what log-probabilities are labelled with."""

import asyncio
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import processors
from transformers import PreTrainedTokenizerFast

from headway.engine.config import ModelConfig
from headway.engine.errors import ModelRefused, RequestError
from headway.server.tokenizer import Tokenizer

text = st.text(st.characters(codec="utf-8"))


@given(text)
@settings(deadline=None)
def test_bytes_of_tokens_join_to_the_text(chatml, needle, text):
    for tokenizer in (chatml, needle):
        assert b"".join(map(tokenizer.token_bytes, tokenizer.encode(text))) == text.encode()


@given(text.filter(lambda text: "▁" not in text))
@settings(deadline=None)
def test_bytes_of_sentencepiece_tokens_join_to_the_text(llama, text):
    assert b"".join(map(llama.token_bytes, llama.encode(text))).removeprefix(b" ") == text.encode()


@given(text)
@settings(deadline=None)
def test_offsets_say_where_each_token_begins(chatml, text):
    ids = chatml.encode(text)
    for token, offset in zip(ids, chatml.offsets(ids, text), strict=True):
        piece = chatml.token_text(token)
        assert "\ufffd" in piece or text[offset:].startswith(piece)


def test_tokens_that_were_added_to_a_text_have_no_characters_of_it(chatml):
    start = chatml.backend.token_to_id("<|im_start|>")
    ids = chatml.encode("Hi you")
    assert chatml.offsets([start, *ids], "Hi you") == [0, *chatml.offsets(ids, "Hi you")]
    spelled = chatml.offsets([start, *ids], "<|im_start|>Hi you")
    assert spelled == [0, *(12 + offset for offset in chatml.offsets(ids, "Hi you"))]


def test_unknown_tokens_are_empty(chatml):
    assert chatml.token_bytes(10**6) == b""
    assert chatml.decode([10**6]) == ""


def test_limits_saved_with_a_checkpoint_do_not_cut_prompts(chatml, renderer):
    backend = type(chatml.backend).from_str(chatml.backend.to_str())
    backend.enable_truncation(8)
    backend.enable_padding(length=16)
    tokenizer = Tokenizer(PreTrainedTokenizerFast(tokenizer_object=backend), renderer)
    assert tokenizer.encode("a" * 100) == chatml.encode("a" * 100)
    assert tokenizer.encode("a") == chatml.encode("a")


def test_special_tokens_are_added_on_request_only(chatml, renderer):
    backend = type(chatml.backend).from_str(chatml.backend.to_str())
    bos = backend.token_to_id("<|im_start|>")
    backend.post_processor = processors.TemplateProcessing(
        single="<|im_start|> $A", special_tokens=[("<|im_start|>", bos)]
    )
    tokenizer = Tokenizer(PreTrainedTokenizerFast(tokenizer_object=backend), renderer)
    assert tokenizer.encode("a") == [bos, *tokenizer.encode("a", add_special_tokens=False)]


def test_a_lone_surrogate_is_refused(chatml):
    with pytest.raises(RequestError, match="surrogate"):
        chatml.encode("a\ud800")


def test_a_missing_model_is_refused(tmp_path):
    with pytest.raises(ModelRefused, match="cannot load the tokenizer"):
        Tokenizer.load(ModelConfig(name=str(tmp_path)))


def test_encoding_a_megabyte_leaves_the_event_loop_running(needle):
    prompt = "the big stone of 777 words " * 40_000

    async def longest_pause() -> tuple[float, float]:
        work = asyncio.create_task(needle.encode_async(prompt))
        start = last = time.monotonic()
        pause = 0.0
        while not work.done():
            await asyncio.sleep(0.001)
            now = time.monotonic()
            pause, last = max(pause, now - last), now
        assert len(await work) > 100_000
        return pause, last - start

    pause, total = asyncio.run(longest_pause())
    assert pause < total / 2
