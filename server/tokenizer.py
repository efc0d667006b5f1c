"""Tokenizer: text to tokens and back, and conversations to prompts, with the model's own vocabulary."""

import asyncio
import re
from collections.abc import Sequence
from typing import Any, Self

from tokenizers import Tokenizer as Backend
from transformers import AutoTokenizer, PreTrainedTokenizerBase
from transformers.convert_slow_tokenizer import bytes_to_unicode

from headway.engine.config import ModelConfig
from headway.engine.errors import ModelRefused
from headway.engine.loading import model_source
from headway.server.chat_template import ChatTemplate, Message
from headway.server.detokenizer import Detokenizer
from headway.server.piece_encoder import encode_pieces, encode_texts
from headway.server.template_renderer import TemplateRenderer

_BYTE_TOKEN = re.compile(r"<0x([0-9A-F]{2})>")
_BYTES = {character: byte for byte, character in bytes_to_unicode().items()}


class Tokenizer:
    """A model's tokenizer and chat template; safe to use from several threads.

    A megabyte of text takes about a second to encode: the `_async` methods spend it in a thread, without
    Python's lock.

    Args:
        loaded: Hugging Face's tokenizer.
        renderer: runs the chat template; `close` ends it.

    Attributes:
        backend: the fast tokenizer; never changed after loading.
        special_token_ids: ids of control tokens.
    """

    def __init__(self, loaded: PreTrainedTokenizerBase, renderer: TemplateRenderer) -> None:
        self.backend: Backend = loaded.backend_tokenizer
        # Some checkpoints carry the limits of their training.
        self.backend.no_truncation()
        self.backend.no_padding()
        added = self.backend.get_added_tokens_decoder()
        self.special_token_ids = frozenset(token for token, entry in added.items() if entry.special)
        self._added: dict[int, str] = {token: entry.content for token, entry in added.items()}
        self._byte_level = "ByteLevel" in repr(self.backend.decoder)
        self._renderer = renderer
        self._template = ChatTemplate(loaded, renderer)

    @classmethod
    def load(cls, config: ModelConfig) -> Self:
        """Load the tokenizer of a model.

        Raises:
            ModelRefused: there is none, or none that the tokenizers library can run.
        """
        try:
            loaded = AutoTokenizer.from_pretrained(
                model_source(config),
                revision=config.revision,
                trust_remote_code=config.trust_remote_code,
            )
        except (OSError, ValueError, KeyError, ImportError) as error:
            raise ModelRefused(f"cannot load the tokenizer of {config.name}: {error}") from error
        if not loaded.is_fast:
            raise ModelRefused(f"{config.name} has no tokenizer.json that the tokenizers library can run")
        return cls(loaded, TemplateRenderer())

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """Token ids of `text`; control tokens in it count as such.

        Raises:
            RequestError: the text holds a lone surrogate.
        """
        return encode_texts(self.backend, [text], add_special_tokens)[0]

    async def encode_async(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """`encode` in a thread."""
        return await asyncio.to_thread(self.encode, text, add_special_tokens)

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        """The text of `ids`; ids outside the vocabulary have none."""
        text: str = self.backend.decode(ids, skip_special_tokens=skip_special_tokens)
        return text

    def detokenizer(self, prompt: Sequence[int] = (), skip_special_tokens: bool = True) -> Detokenizer:
        """Turns the tokens that follow `prompt` into text, as they come."""
        return Detokenizer(
            self.backend, prompt, self.special_token_ids if skip_special_tokens else frozenset()
        )

    def token_bytes(self, token: int) -> bytes:
        """The bytes that a token stands for, perhaps part of a character; none if there is no such token."""
        if token in self._added:
            return self._added[token].encode()
        written: str = self.backend.id_to_token(token) or ""
        if self._byte_level and all(character in _BYTES for character in written):
            return bytes(_BYTES[character] for character in written)
        byte = _BYTE_TOKEN.fullmatch(written)
        return bytes([int(byte[1], 16)]) if byte else written.replace("▁", " ").encode()

    def token_text(self, token: int) -> str:
        """A token's bytes as text; what is no complete character becomes U+FFFD."""
        return self.token_bytes(token).decode(errors="replace")

    def offsets(self, ids: Sequence[int], text: str) -> list[int]:
        """For each token, the characters of `text` that come before it.

        Where the ids say more than the text, special tokens were added to it, which have no characters.
        """
        added = self.decode(ids, False) != text
        detokenizer = self.detokenizer(skip_special_tokens=added)
        offsets = [0]
        for token in ids:
            offsets.append(offsets[-1] + len(detokenizer.push([token])))
        return offsets[:-1]

    def chat(self, messages: Sequence[Message], **options: Any) -> list[int]:
        """Token ids of a conversation; `options` and errors are those of `ChatTemplate.render`.

        Only the template writes control tokens. Where a client spells one, it is encoded as the text it is.
        """
        return encode_pieces(self.backend, self._template.render(messages, **options))

    async def chat_async(self, messages: Sequence[Message], **options: Any) -> list[int]:
        """`chat` in a thread."""
        return await asyncio.to_thread(self.chat, messages, **options)

    def close(self) -> None:
        """End the process that renders conversations."""
        self._renderer.close()
