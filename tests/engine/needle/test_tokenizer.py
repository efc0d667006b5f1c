"""The tokenizer encodes anything and keeps what retrieval needs in one token."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from headway.engine.needle import WEIGHTS, phrases


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(WEIGHTS)


@settings(deadline=None, max_examples=200)
@given(text=st.text(max_size=200))
def test_any_text_survives(tokenizer: PreTrainedTokenizerBase, text: str) -> None:
    ids = tokenizer.encode(text, add_special_tokens=False)
    assert tokenizer.decode(ids) == text


@pytest.mark.parametrize("width", [1, 2, 3])
def test_every_number_of_up_to_three_digits_is_one_token(
    tokenizer: PreTrainedTokenizerBase, width: int
) -> None:
    for n in range(10**width):
        assert len(tokenizer.encode(f"{n:0{width}}", add_special_tokens=False)) == 1


def test_longer_numbers_are_cut_in_threes(tokenizer: PreTrainedTokenizerBase) -> None:
    assert tokenizer.tokenize("4829131") == ["482", "913", "1"]


def test_key_words_are_one_token_with_and_without_a_space(tokenizer: PreTrainedTokenizerBase) -> None:
    for word in [*phrases.NOUNS, *phrases.ADJECTIVES]:
        assert len(tokenizer.tokenize(word)) == len(tokenizer.tokenize(" " + word)) == 1


def test_chat_template(tokenizer: PreTrainedTokenizerBase) -> None:
    chat = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "a: 1\n"}, {"type": "text", "text": "a?"}]},
    ]
    text = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    assert text == "<|system|>Be brief.<|end|><|user|>a: 1\na?<|end|><|assistant|>"
    assert tokenizer.eos_token == "<|end|>"


def test_a_trailing_answer_can_be_continued(tokenizer: PreTrainedTokenizerBase) -> None:
    chat = [{"role": "user", "content": "a?"}, {"role": "assistant", "content": "The value is"}]
    text = tokenizer.apply_chat_template(chat, tokenize=False, continue_final_message=True)
    assert text == "<|user|>a?<|end|><|assistant|>The value is"
