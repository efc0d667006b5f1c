"""Routes beside the two that generate: models, tokens, health and metrics."""

import asyncio

from fastapi import APIRouter, Response

from headway.engine.errors import EngineDead, RequestError
from headway.server.conversation import conversation
from headway.server.errors import ApiError
from headway.server.json_body import JsonRoute
from headway.server.metrics import CONTENT_TYPE
from headway.server.openapi import BODY_ERRORS, errors
from headway.server.responses import Detokenized, ModelCard, ModelList, Status, Tokenized
from headway.server.schema import DetokenizeRequest, TokenizeRequest
from headway.server.service import Service, ServiceOf

router = APIRouter(route_class=JsonRoute)


@router.get("/v1/models", responses=errors(), tags=["OpenAI"])
async def list_models(service: ServiceOf) -> ModelList:
    """The one model that is served."""
    return ModelList(data=[_card(service)])


@router.get("/v1/models/{model:path}", responses=errors(404), tags=["OpenAI"])
async def get_model(model: str, service: ServiceOf) -> ModelCard:
    """The served model, by its name."""
    service.check_model(model)
    return _card(service)


@router.post("/tokenize", responses=errors(*BODY_ERRORS), tags=["Tokens"])
async def tokenize(body: TokenizeRequest, service: ServiceOf) -> Tokenized:
    """Token ids of a text, or of a rendered conversation."""
    service.check_model(body.model)
    if body.messages is not None and body.prompt is None:
        tokens = await conversation(service, body.messages, body)
    elif body.prompt is not None and body.messages is None:
        tokens = await service.tokenizer.encode_async(body.prompt, body.add_special_tokens is not False)
    else:
        raise RequestError("give either prompt or messages", "prompt")
    return Tokenized(tokens=tokens, count=len(tokens), max_model_len=service.engine.info.max_context)


@router.post("/detokenize", responses=errors(*BODY_ERRORS), tags=["Tokens"])
async def detokenize(body: DetokenizeRequest, service: ServiceOf) -> Detokenized:
    """The text of token ids."""
    service.check_model(body.model)
    if body.tokens and max(body.tokens) >= service.engine.info.vocab_size:
        raise RequestError(f"token ids must be below {service.engine.info.vocab_size}", "tokens")
    return Detokenized(prompt=await asyncio.to_thread(service.tokenizer.decode, body.tokens, False))


@router.get("/health", responses={503: errors(503)[503]}, tags=["Operation"])
async def health(service: ServiceOf) -> Status:
    """Whether the engine is alive. Needs no API key."""
    if not service.engine.is_alive():
        raise EngineDead("the engine has ended or hangs")
    return Status()


@router.get("/ready", responses=errors(503), tags=["Operation"])
async def ready(service: ServiceOf) -> Status:
    """Whether new requests are welcome: the engine is alive and the server is not shutting down."""
    if service.drain.started:
        raise ApiError(503, "the server is shutting down", code="draining")
    return await health(service)


@router.get("/metrics", responses=errors(), response_class=Response, tags=["Operation"])
async def metrics(service: ServiceOf) -> Response:
    """Prometheus' text format."""
    return Response(service.metrics.expose(), media_type=CONTENT_TYPE)


def _card(service: Service) -> ModelCard:
    return ModelCard(id=service.model, created=service.created, max_model_len=service.engine.info.max_context)
