"""POST /v1/chat/completions."""

from fastapi import APIRouter, Request, Response

from headway.engine.errors import RequestError
from headway.server.answers import Answer
from headway.server.choices import ChatChoice
from headway.server.headway_options import wishes
from headway.server.job import Job
from headway.server.json_body import JsonRoute
from headway.server.openapi import generation_responses
from headway.server.responses import ChatCompletion
from headway.server.sampling import sampling_params, text_options
from headway.server.schema import ChatRequest
from headway.server.service import ServiceOf
from headway.server.settings import ServerConfig

router = APIRouter(route_class=JsonRoute, tags=["OpenAI"])


@router.post("/v1/chat/completions", responses=generation_responses(ChatCompletion), response_class=Response)
async def chat_completions(body: ChatRequest, request: Request, service: ServiceOf) -> Response:
    """Answer a conversation. With `stream`, server-sent events: one chunk a token, then `data: [DONE]`."""
    service.check_model(body.model)
    if body.top_logprobs is not None and not body.logprobs:
        raise RequestError("top_logprobs needs logprobs: true", "top_logprobs")
    limits = service.settings.engine.limits
    sampling = sampling_params(
        body,
        limits,
        max_tokens=body.max_completion_tokens or body.max_tokens,
        logprobs=(body.top_logprobs or 0) if body.logprobs else None,
    )
    text = text_options(body, limits)
    wished = wishes(body.headway, service.offers)
    prompt = await service.tokenizer.chat_async(
        [message.model_dump() for message in body.messages],
        add_generation_prompt=body.add_generation_prompt,
        continue_final_message=_continues(body, service.settings.server),
        variables=body.chat_template_kwargs,
    )
    job = Job.build("chatcmpl", body, [prompt], sampling, text, wished)
    choices = [ChatChoice(index, service.tokenizer, bool(body.logprobs)) for index in range(job.n)]
    answer = Answer(service, job, "chat.completion", "chat.completion.chunk", choices)
    return await answer.respond(request, body)


def _continues(body: ChatRequest, config: ServerConfig) -> bool:
    if body.continue_final_message is not None or body.add_generation_prompt:
        return bool(body.continue_final_message)
    return config.continue_trailing_assistant and body.messages[-1].role == "assistant"
