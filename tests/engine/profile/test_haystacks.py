"""Haystacks: every question's answer stands where it is said to stand, in any model's tokens."""

from types import SimpleNamespace

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from headway.engine.errors import ConfigError
from headway.engine.needle import WEIGHTS
from headway.engine.profile.haystacks import maker

LENGTH, QUESTIONS = 900, 5


def bytes_and_pieces() -> Tokenizer:
    """Byte-level BPE, as Llama 3 and Qwen have."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    text = ["One of the special magic numbers for amused pear is: 4837993.", "mentioned in the provided text"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(text * 3, trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet))
    return tokenizer


def marked_words() -> Tokenizer:
    """Spaces as ▁ in front of the word, digits alone, as Llama 2 has."""
    tokenizer = Tokenizer(models.BPE(byte_fallback=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.Metaspace()]
    )
    tokenizer.decoder = decoders.Metaspace()
    alphabet = [chr(code) for code in range(32, 127)] + ["▁"]
    text = ["One of the special magic numbers for bronze lake is: 681337223."]
    tokenizer.train_from_iterator(text * 3, trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet))
    return tokenizer


def model_of(folder, tokenizer):
    PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(folder)
    return SimpleNamespace(model=SimpleNamespace(name_or_path=str(folder), config=SimpleNamespace()))


@pytest.fixture(
    scope="module", params=[bytes_and_pieces, marked_words, None], ids=["bytes", "words", "needle"]
)
def loaded(request, tmp_path_factory):
    if request.param is None:
        return SimpleNamespace(model=SimpleNamespace(name_or_path=str(WEIGHTS), config=SimpleNamespace()))
    return model_of(tmp_path_factory.mktemp("model"), request.param())


@pytest.mark.parametrize("index", [0, 1, 2])
def test_answers_stand_where_they_are_said_to_stand(loaded, index):
    text = maker(loaded)(LENGTH, index, QUESTIONS, 3)
    assert 1 <= len(text.questions) <= QUESTIONS
    for question in text.questions:
        assert text.ids[question.places.start : question.places.stop] == question.answer
        assert LENGTH // 2 < len(text.ids) + len(question.ask) + len(question.answer) <= LENGTH


def test_passkeys_read_like_the_facts(tmp_path):
    tokenizer = bytes_and_pieces()
    text = maker(model_of(tmp_path, tokenizer))(LENGTH, 0, QUESTIONS, 3)
    prose = tokenizer.decode(text.ids)
    for question in text.questions:
        value, ask = tokenizer.decode(question.answer), tokenizer.decode(question.ask)
        key = ask.partition("number for ")[2].partition(" mentioned")[0]
        assert f"One of the special magic numbers for {key} is:{value}." in prose
        assert value.strip().isdigit()
        assert ask.endswith(" is:")


def test_equal_seeds_give_equal_texts_and_others_do_not(loaded):
    make = maker(loaded)
    assert make(LENGTH, 1, QUESTIONS, 3) == make(LENGTH, 1, QUESTIONS, 3)
    assert len({tuple(make(LENGTH, index, 2, seed).ids) for index in (0, 1) for seed in (0, 1)}) == 4


def test_what_cannot_be_made_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="need the model's tokenizer"):
        maker(SimpleNamespace(model=SimpleNamespace(name_or_path=str(tmp_path), config=SimpleNamespace())))
    make = maker(model_of(tmp_path, bytes_and_pieces()))
    with pytest.raises(ConfigError, match="length: 40 tokens do not hold a text"):
        make(40, 0, 5, 0)
