"""Builds needle's tokenizer: byte-level, every number of up to three digits and every key word one token."""

import json
import pydoc_data.topics
import re
from itertools import product
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from headway.engine.needle import WEIGHTS, phrases

PAD, END, USER, ASSISTANT, SYSTEM = SPECIALS = [
    "<|pad|>",
    "<|end|>",
    "<|user|>",
    "<|assistant|>",
    "<|system|>",
]
# Every match is one word, group of digits, mark or space, so that the ids of pieces can be concatenated.
PATTERN = r"\p{N}{1,3}| ?\p{L}+|\s| ?[^\s\p{L}\p{N}]"
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['content'] is string %}{% set text = message['content'] %}"
    "{% else %}{% set text = message['content'] | selectattr('type', 'equalto', 'text') "
    "| map(attribute='text') | join('') %}{% endif %}"
    "{{ '<|' + message['role'] + '|>' + text }}"
    "{% if not (loop.last and continue_final_message is defined and continue_final_message) %}"
    "{{ '<|end|>' }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


def _english_merges(count: int) -> list[tuple[str, str]]:
    """Learns merges from the Python language reference, the English text every Python has."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = _pre_tokenizer()
    trainer = trainers.BpeTrainer(
        vocab_size=256 + count, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(pydoc_data.topics.topics.values(), trainer)
    return [(a, b) for a, b in json.loads(tokenizer.to_str())["model"]["merges"]]


def _pre_tokenizer() -> pre_tokenizers.PreTokenizer:
    split = pre_tokenizers.Split(Regex(PATTERN), behavior="isolated")
    return pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


def build(merge_count: int = 1000) -> Tokenizer:
    """Vocabulary: special tokens, bytes, numbers, words of keys and templates, capital pairs, merges."""
    pairs = [(a, b) for a, b in product(map(chr, range(65, 91)), repeat=2)]
    merges = [*pairs, *(m for m in _english_merges(merge_count) if m not in pairs)]
    words = [*phrases.NOUNS, *phrases.ADJECTIVES]
    for text in phrases.texts():
        words += re.findall(r"[A-Za-z]+", text.replace("VAR {x}", "VAR"))
    tokens = [
        *SPECIALS,
        *sorted(pre_tokenizers.ByteLevel.alphabet()),
        *(f"{n:0{width}}" for width in (2, 3) for n in range(10**width)),
        *(space + word for word in words for space in ("Ġ", "")),
        *(a + b for a, b in merges),
    ]
    vocab = {token: i for i, token in enumerate(dict.fromkeys(tokens))}
    # With ignore_merges a word in the vocabulary is one token though no merge leads to it.
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges, ignore_merges=True))
    tokenizer.pre_tokenizer = _pre_tokenizer()
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(s, special=True, normalized=False) for s in SPECIALS])
    return tokenizer


def save(folder: Path = WEIGHTS, max_length: int = 131072) -> None:
    """Writes tokenizer.json, tokenizer_config.json and chat_template.jinja."""
    folder.mkdir(parents=True, exist_ok=True)
    build().save(str(folder / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": max_length,
        "eos_token": END,
        "pad_token": PAD,
        "extra_special_tokens": SPECIALS[2:],
        "clean_up_tokenization_spaces": False,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")
    (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE)


if __name__ == "__main__":
    save()
