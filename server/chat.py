"""POST /v1/chat/completions."""

from fastapi import APIRouter, Request, Response

from headway.engine.errors import RequestError
from headway.server.answers import Answer
from headway.server.choices import ChatChoice
from headway.server.conversation import conversation
from headway.server.headway_options import wishes
from headway.server.job import Job
from headway.server.json_body import JsonRoute
from headway.server.openapi import generation_responses
from headway.server.responses import ChatCompletion
from headway.server.sampling import sampling_params, text_options
from headway.server.schema import ChatRequest
from headway.server.service import ServiceOf

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
        logprobs_field="top_logprobs",
    )
    text = text_options(body, limits)
    wished = wishes(body.headway, service.offers)
    prompt = await conversation(service, body.messages, body)
    fields = {"prompt": "messages"}
    if body.max_completion_tokens:
        fields["max_tokens"] = "max_completion_tokens"
    job = Job.build("chatcmpl", body, [prompt], sampling, text, wished, fields)
    choices = [ChatChoice(index, service.tokenizer, bool(body.logprobs)) for index in range(job.n)]
    answer = Answer(service, job, "chat.completion", "chat.completion.chunk", choices)
    return await answer.respond(request, body)
