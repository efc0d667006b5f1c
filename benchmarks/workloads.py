"""The models and request patterns that serving is measured on."""

import zlib
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from headway.engine.needle import WEIGHTS


@dataclass(frozen=True, slots=True)
class Case:
    """`concurrent` requests at once, each of `prompt` random tokens in and `answer` tokens out.

    With `second_question`, the same documents have been asked about before: only the last QUESTION tokens of
    each prompt are new.
    """

    name: str
    model: str
    concurrent: int
    prompt: int
    answer: int
    second_question: bool = False

    def prompts(self, vocab_size: int, question: int = 0) -> list[list[int]]:
        """Random prompts, [concurrent][prompt] token ids: a document, then a question on it."""
        document = self._draw(vocab_size, zlib.crc32(self.name.encode()), self.prompt - QUESTION)
        return torch.cat([document, self._draw(vocab_size, question, QUESTION)], dim=1).tolist()

    def _draw(self, vocab_size: int, seed: int, length: int) -> torch.Tensor:
        generator = torch.Generator().manual_seed(seed)
        return torch.randint(10, vocab_size, (self.concurrent, length), generator=generator)

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)


QUESTION = 32
SHORT, LONG = (256, 128), (16_384, 64)

FULL = [
    Case("needle, 1 short", "needle", 1, *SHORT),
    Case("needle, 16 short", "needle", 16, *SHORT),
    Case("needle, 1 long", "needle", 1, *LONG),
    Case("needle, 16 long", "needle", 16, *LONG),
    Case("needle, first question on 32k", "needle", 1, 32_768, 16),
    Case("needle, second question on 32k", "needle", 1, 32_768, 16, second_question=True),
    Case("llama-0.2b, 1 short", "llama-0.2b", 1, *SHORT),
    Case("llama-0.2b, 16 short", "llama-0.2b", 16, *SHORT),
    Case("llama-0.2b, 1 long", "llama-0.2b", 1, *LONG),
    Case("llama-0.2b, 16 long", "llama-0.2b", 16, *LONG),
]
QUICK = [
    Case("needle, 1 short", "needle", 1, 256, 48),
    Case("needle, 16 short", "needle", 16, 256, 32),
    Case("needle, first question on 2k", "needle", 1, 2048, 8),
    Case("needle, second question on 2k", "needle", 1, 2048, 8, second_question=True),
]


SHAPES: dict[str, dict[str, int]] = {
    "llama-0.2b": {
        "hidden_size": 1024,
        "intermediate_size": 2816,
        "num_attention_heads": 16,
        "num_key_value_heads": 4,
    },
    "llama-1b": {
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
    },
}


def model_folder(name: str, scratch: Path) -> Path:
    """A folder that every peer loads the same weights from; random ones are made once, seed 0."""
    if name == "needle":
        return WEIGHTS
    folder = scratch / name
    if not folder.exists():
        torch.manual_seed(0)
        config = LlamaConfig(
            **SHAPES[name],
            num_hidden_layers=16,
            vocab_size=32_000,
            max_position_embeddings=262_144,
            tie_word_embeddings=True,
        )
        LlamaForCausalLM(config).save_pretrained(folder)
    return folder
