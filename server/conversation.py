"""From a request's messages to its prompt: the same for a chat and for /tokenize."""

from collections.abc import Sequence

from headway.server.schema import Message, TemplateFields
from headway.server.service import Service


async def conversation(service: Service, messages: Sequence[Message], fields: TemplateFields) -> list[int]:
    """Token ids of the messages as the model's template renders them.

    Raises:
        RequestError: the template refuses them, or a field contradicts another.
    """
    continues = bool(fields.continue_final_message)
    if fields.continue_final_message is None and not fields.add_generation_prompt:
        goes_on = messages[-1].role == "assistant"
        continues = service.settings.server.continue_trailing_assistant and goes_on
    return await service.tokenizer.chat_async(
        [message.model_dump() for message in messages],
        add_generation_prompt=fields.add_generation_prompt,
        continue_final_message=continues,
        variables=fields.chat_template_kwargs,
    )
