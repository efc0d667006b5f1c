"""POST /v1/completions."""

import asyncio

from fastapi import APIRouter, Request, Response

from headway.engine.errors import RequestError
from headway.server.answers import Answer
from headway.server.choices import CompletionChoice
from headway.server.headway_options import wishes
from headway.server.job import Job
from headway.server.json_body import JsonRoute
from headway.server.openapi import generation_responses
from headway.server.responses import Completion
from headway.server.sampling import sampling_params, text_options
from headway.server.schema import CompletionRequest
from headway.server.service import Service, ServiceOf

router = APIRouter(route_class=JsonRoute, tags=["OpenAI"])

DEFAULT_MAX_TOKENS = 16
"""OpenAI's default for this route."""


@router.post("/v1/completions", responses=generation_responses(Completion), response_class=Response)
async def completions(body: CompletionRequest, request: Request, service: ServiceOf) -> Response:
    """Continue one or several prompts. With `stream`, server-sent events, one a token, then `[DONE]`."""
    service.check_model(body.model)
    n = body.n or 1
    if body.best_of not in (None, n):
        raise RequestError("best_of must equal n: every sequence is returned", "best_of")
    most = service.settings.server.max_prompts
    if len(body.prompt) > most:
        raise RequestError(f"prompt: at most {most} prompts a request, not {len(body.prompt)}", "prompt")
    limits = service.settings.engine.limits
    prompts = [await _tokens(service, prompt, body.add_special_tokens is not False) for prompt in body.prompt]
    room = service.engine.info.max_context - max(map(len, prompts))
    sampling = sampling_params(
        body,
        limits,
        max_tokens=body.max_tokens or max(1, min(DEFAULT_MAX_TOKENS, room)),
        logprobs=body.logprobs,
        prompt_logprobs=body.logprobs if body.echo else None,
    )
    if body.echo and body.logprobs is not None:
        _check_scores(sum(map(len, prompts)) * n * (body.logprobs + 1), limits.max_prompt_logprobs)
    text = text_options(body, limits)
    wished = wishes(body.headway, service.offers)
    job = Job.build("cmpl", body, prompts, sampling, text, wished)
    echoes = [await _text(service, prompt) if body.echo else "" for prompt in body.prompt]
    choices = [
        CompletionChoice(
            index,
            service.tokenizer,
            body.logprobs is not None,
            prompts[index // n] if body.echo else None,
            echoes[index // n],
        )
        for index in range(len(prompts) * n)
    ]
    answer = Answer(service, job, "text_completion", "text_completion", choices)
    return await answer.respond(request, body)


def _check_scores(entries: int, most: int) -> None:
    if entries > most:
        raise RequestError(
            f"with echo, prompt tokens times n times (logprobs + 1) may be {most} at most, not {entries}",
            "logprobs",
        )


async def _tokens(service: Service, prompt: str | list[int], add_special_tokens: bool) -> list[int]:
    if isinstance(prompt, str):
        return await service.tokenizer.encode_async(prompt, add_special_tokens)
    return prompt


async def _text(service: Service, prompt: str | list[int]) -> str:
    if isinstance(prompt, str):
        return prompt
    return await asyncio.to_thread(service.tokenizer.decode, prompt, False)
