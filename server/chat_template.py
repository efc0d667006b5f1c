"""ChatTemplate: a conversation to the text of a prompt, by the model's own template."""

from collections.abc import Mapping, Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

from headway.engine.errors import RequestError
from headway.server.control_tokens import ControlTokens
from headway.server.template_process import RenderJob
from headway.server.template_renderer import TemplateRenderer

Message = Mapping[str, Any]

ROLES = ("system", "developer", "user", "assistant", "tool")
SECONDS = 5.0
"""CPU time that a template may take; a megabyte of text takes milliseconds."""

RESERVED = frozenset(
    {
        "add_generation_prompt",
        "chat_template",
        "continue_final_message",
        "conversation",
        "conversations",
        "documents",
        "max_length",
        "messages",
        "padding",
        "return_assistant_tokens_mask",
        "return_dict",
        "return_tensors",
        "sanitize_control_tokens",
        "tokenize",
        "tokenizer_kwargs",
        "tools",
        "truncation",
    }
)
"""Names in `chat_template_kwargs` that would change more than the template's own switches."""


class ChatTemplate:
    """The template of one model.

    Args:
        tokenizer: where the template and the names of its control tokens come from.
        renderer: runs the template; it may serve others as well.
        seconds: CPU time that one conversation may take.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, renderer: TemplateRenderer, seconds: float = SECONDS
    ) -> None:
        self._tokenizer = tokenizer
        self._renderer = renderer
        self._seconds = seconds
        self._special_tokens = dict(tokenizer.special_tokens_map)
        added = tokenizer.added_tokens_decoder.values()
        special = {token.content for token in added if token.special}
        source = str(tokenizer.chat_template)
        # Gemma lists HTML tags and line breaks as added tokens: those are text.
        named = {t.content for t in added if t.content in source or t.content.startswith("<|")}
        self._control = ControlTokens(special | {token for token in named if not token.isspace()})
        # What a model wrote itself, such as <think>, may come back as the tokens that it was.
        self._special = ControlTokens(special)

    def render(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool | None = None,
        continue_final_message: bool = False,
        variables: Mapping[str, Any] | None = None,
    ) -> list[tuple[str, bool]]:
        """The prompt in pieces; True marks a control token that stands in what the client sent.

        Args:
            messages: the conversation, in OpenAI's form, text only.
            tools: JSON schemas of functions.
            add_generation_prompt: begin the assistant's answer; default: unless the final message goes on.
            continue_final_message: leave the last message open, so that the model continues it.
            variables: switches of the template (`chat_template_kwargs`).

        Raises:
            RequestError: names the field that is wrong, or tells what the template complains about.
        """
        if not self._tokenizer.chat_template:
            raise RequestError("this model has no chat template; use /v1/completions", "messages")
        if add_generation_prompt is None:
            add_generation_prompt = not continue_final_message
        if add_generation_prompt and continue_final_message:
            raise RequestError(
                "add_generation_prompt and continue_final_message exclude each other",
                "continue_final_message",
            )
        self._check_variables(variables or {})
        template = self._tokenizer.get_chat_template(tools=tools)
        plain = _plain(messages)
        if "developer" not in template:  # it would leave the message out, or write it as nothing it knows
            plain = [{**m, "role": "system"} if m["role"] == "developer" else m for m in plain]
        job = RenderJob(
            template=template,
            messages=[self._mark(message) for message in plain],
            tools=None if tools is None else self._control.mark(list(tools)),
            variables={**self._special_tokens, **self._control.mark(dict(variables or {}))},
            add_generation_prompt=add_generation_prompt,
            continue_final_message=continue_final_message,
            seconds=self._seconds,
        )
        return self._control.split(self._renderer.render(job))

    def _mark(self, message: dict[str, Any]) -> Any:
        return (self._special if message["role"] == "assistant" else self._control).mark(message)

    def _check_variables(self, variables: Mapping[str, Any]) -> None:
        for name in variables:
            if name in RESERVED or name in self._special_tokens or not name.isidentifier() or name[0] == "_":
                raise RequestError(f"must not hold {name[:80]!r}", "chat_template_kwargs")


def _plain(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """Messages as templates expect them: no null values, text parts joined by line breaks as vLLM does."""
    if not messages:
        raise RequestError("at least one message is needed", "messages")
    plain = []
    for index, message in enumerate(messages):
        if message.get("role") not in ROLES:
            raise RequestError(f"must be one of {', '.join(ROLES)}", f"messages.{index}.role")
        given = {name: value for name, value in message.items() if value is not None}
        if isinstance(given.get("content"), list):
            given["content"] = "\n".join(_text(part, index) for part in given["content"])
        plain.append(given)
    return plain


def _text(part: Any, index: int) -> str:
    match part:
        case {"type": "text", "text": str(text)}:
            return text
    raise RequestError("parts must be {'type': 'text', 'text': …}", f"messages.{index}.content")
