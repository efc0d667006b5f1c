"""The detokenizer against decoding everything at once."""

from itertools import chain

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from headway.server.detokenizer import LONGEST_WAIT
from headway.server.tokenizer import Tokenizer

text = st.text(st.characters(codec="utf-8", exclude_characters="\ufffd"))
emoji = st.lists(
    st.sampled_from(["👩‍👩‍👧‍👦", "🏳️‍🌈", "日本語", " 終わり", "é", "e\u0301", "🇯🇵", " a", "<|im_end|>"])
).map("".join)


def singly(tokenizer: Tokenizer, ids: list[int], skip: bool = False) -> list[str]:
    detokenizer = tokenizer.detokenizer(skip_special_tokens=skip)
    return [*(detokenizer.push([token]) for token in ids), detokenizer.flush()]


@given(st.one_of(text, emoji))
@settings(deadline=None)
def test_text_comes_back_and_no_character_is_split(chatml, needle, text):
    for tokenizer in (chatml, needle):
        parts = singly(tokenizer, tokenizer.encode(text))
        assert "".join(parts) == text
        assert not any("\ufffd" in part for part in parts)


@given(st.one_of(text, emoji).filter(lambda text: "<|" not in text))
@settings(deadline=None)
def test_text_comes_back_through_byte_tokens(llama, text):
    assert "".join(singly(llama, llama.encode(text))) == text


@given(ids=st.lists(st.integers(0, 280), max_size=60), skip=st.booleans())
@example(ids=[172, 253, 246, *[128] * 40, 172, 253, 246, 222], skip=True)
@settings(max_examples=300, deadline=None)
def test_any_tokens_give_the_text_of_all_at_once(chatml, ids, skip):
    assert "".join(singly(chatml, ids, skip)) == chatml.decode(ids, skip)


@given(
    chunks=st.lists(st.lists(st.integers(100, 262), max_size=30), max_size=8),
    skip=st.booleans(),
)
@settings(max_examples=300, deadline=None)
def test_chunks_of_tokens_give_the_same_text(chatml, chunks, skip):
    detokenizer = chatml.detokenizer(skip_special_tokens=skip)
    parts = [detokenizer.push(chunk) for chunk in chunks]
    assert "".join(parts) + detokenizer.flush() == chatml.decode(list(chain(*chunks)), skip)


@given(st.lists(st.integers(0, 275), max_size=60))
@settings(deadline=None)
def test_invalid_byte_tokens_are_no_error_and_lose_no_words(llama, ids):
    whole, parts = llama.decode(ids, False), "".join(singly(llama, ids))
    assert parts.replace("\ufffd", "").count("world") == whole.count("world")


@pytest.mark.parametrize("name", ["chatml", "llama"])
def test_a_run_of_invalid_bytes_does_not_wait_for_ever(name, request):
    tokenizer = request.getfixturevalue(name)
    byte = next(token for token in range(300) if tokenizer.token_bytes(token) == b"\x80")
    detokenizer = tokenizer.detokenizer()
    written = 0
    for count in range(1, 2000):
        written += len(detokenizer.push([byte]))
        assert count - written <= LONGEST_WAIT
    assert written + len(detokenizer.flush()) == 1999


def test_a_space_at_the_front_belongs_to_the_text_if_a_prompt_came_before(llama):
    prompt = llama.encode("Hello")
    world = llama.backend.token_to_id("▁world")
    assert llama.detokenizer().push([world]) == "world"
    assert llama.detokenizer(prompt).push([world]) == " world"


def test_control_tokens_are_left_out_unless_asked_for(chatml):
    ids = chatml.encode("a<|im_end|>b")
    assert "".join(singly(chatml, ids, skip=True)) == "ab"
    assert "".join(singly(chatml, ids, skip=False)) == "a<|im_end|>b"


def test_a_prompt_that_ends_in_half_a_character_is_no_error(chatml):
    *prompt, last = chatml.encode("😀")
    detokenizer = chatml.detokenizer(prompt)
    assert detokenizer.push([last]) + detokenizer.push(chatml.encode("a")) + detokenizer.flush() == "\ufffda"
