"""Tokenizers of the two families: bytes as characters, and SentencePiece's words beside byte tokens."""

from collections.abc import Callable, Iterator

import pytest
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers
from tokenizers import Tokenizer as Backend
from transformers import PreTrainedTokenizerFast

from headway.engine.config import ModelConfig
from headway.server.template_renderer import TemplateRenderer
from headway.server.tokenizer import Tokenizer

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content | trim }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    "{% if think is defined %}<think>{% endif %}"
)
WORDS = ["Hello", "▁Hello", "▁world", "▁", "a", "b", "\n", "<", ">", "/", "s", "INST", "[", "]"]


def byte_level() -> Backend:
    """Every byte a token, some pairs, ChatML's control tokens, and <think> as an added word."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [("Ġ", "a"), ("ð", "Ł"), ("i", "m"), ("<", "|")]
    vocab = {token: i for i, token in enumerate([*alphabet, *(a + b for a, b in merges)])}
    backend = Backend(models.BPE(vocab=vocab, merges=merges))
    split = pre_tokenizers.Split(Regex(r"\p{N}| ?\p{L}+|\s+| ?[^\s\p{L}\p{N}]+"), behavior="isolated")
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(t, normalized=False) for t in ("<|im_start|>", "<|im_end|>")])
    backend.add_tokens([AddedToken("<think>", normalized=False), AddedToken("<td>", normalized=False)])
    return backend


def sentencepiece() -> Backend:
    """Llama-2's way: a space before the first word, and a token for each byte that is in no word."""
    tokens = ["<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *WORDS]
    merges = [("▁", "a"), ("▁", "b")]
    vocab = {token: i for i, token in enumerate([*tokens, *(a + b for a, b in merges)])}
    backend = Backend(models.BPE(vocab=vocab, merges=merges, byte_fallback=True, ignore_merges=True))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    backend.pre_tokenizer = pre_tokenizers.Split(Regex("▁?[A-Za-z]+|</?s>|."), behavior="isolated")
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    backend.add_special_tokens([AddedToken(t, normalized=False) for t in ("<s>", "</s>")])
    return backend


@pytest.fixture(scope="session")
def renderer() -> Iterator[TemplateRenderer]:
    """One process for all templates."""
    renderer = TemplateRenderer()
    yield renderer
    renderer.close()


@pytest.fixture(scope="session")
def with_template(renderer: TemplateRenderer) -> Callable[[str | None], Tokenizer]:
    """Makes the byte-level tokenizer with any template."""

    def make(template: str | None) -> Tokenizer:
        loaded = PreTrainedTokenizerFast(tokenizer_object=byte_level(), eos_token="<|im_end|>")
        loaded.chat_template = template
        return Tokenizer(loaded, renderer)

    return make


@pytest.fixture(scope="session")
def chatml(with_template: Callable[[str], Tokenizer]) -> Tokenizer:
    """The byte-level tokenizer with a ChatML template."""
    return with_template(CHATML)


@pytest.fixture(scope="session")
def llama(renderer: TemplateRenderer) -> Tokenizer:
    """The SentencePiece tokenizer with a template that begins with <s>."""
    loaded = PreTrainedTokenizerFast(tokenizer_object=sentencepiece(), bos_token="<s>", eos_token="</s>")
    loaded.chat_template = "{{ bos_token }}{% for m in messages %}[INST] {{ m.content }} [/INST]{% endfor %}"
    return Tokenizer(loaded, renderer)


@pytest.fixture(scope="session")
def needle() -> Iterator[Tokenizer]:
    """The embedded model's tokenizer."""
    tokenizer = Tokenizer.load(ModelConfig())
    yield tokenizer
    tokenizer.close()
