"""Our own OpenAPI document, taken at its word by schemathesis."""

from collections.abc import Callable
from typing import Any

import pytest
import schemathesis
from fastapi import FastAPI
from hypothesis import HealthCheck, given, settings
from schemathesis import GenerationMode
from schemathesis.specs.openapi.checks import positive_data_acceptance

KEY = "a-key"
HEADERS = {"Authorization": f"Bearer {KEY}"}
RELAXED = settings(deadline=None, suppress_health_check=list(HealthCheck), database=None)
# Whether token ids, templates and lengths fit is the model's to say, and not in the document.
UNKNOWABLE = [positive_data_acceptance]


@pytest.fixture
def document(make_app: Callable[..., FastAPI]) -> Any:
    app = make_app({"requests": {"methods": ["quest"]}}, api_keys=[KEY])
    return schemathesis.openapi.from_asgi("/openapi.json", app, headers=HEADERS)


def check_all_operations(document: Any, mode: GenerationMode, examples: int) -> None:
    for result in document.get_all_operations():
        operation = result.ok()
        if mode is GenerationMode.NEGATIVE and not operation.body:
            continue  # nothing can be wrong

        @settings(RELAXED, max_examples=examples)
        @given(operation.as_strategy(generation_mode=mode))
        def check(case: schemathesis.Case) -> None:
            case.call_and_validate(headers=HEADERS, excluded_checks=UNKNOWABLE)

        check()


@pytest.mark.parametrize("mode", list(GenerationMode))
def test_answers_are_as_documented(mode: GenerationMode, document: Any) -> None:
    check_all_operations(document, mode, 10)


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions"])
def test_streams_are_as_documented(path: str, document: Any) -> None:
    prompt = {"messages": [{"role": "user", "content": "Hello"}]} if "chat" in path else {"prompt": "Hello"}
    body = {**prompt, "stream": True, "max_tokens": 3, "stream_options": {"include_usage": True}}
    answer = document[path]["POST"].Case(body=body).call_and_validate(headers=HEADERS)
    assert answer.headers["content-type"][0].startswith("text/event-stream")


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("mode", list(GenerationMode))
def test_answers_are_as_documented_at_length(mode: GenerationMode, document: Any) -> None:
    check_all_operations(document, mode, 100)


def test_document_knows_all_errors_and_no_422(app: FastAPI) -> None:
    paths = app.openapi()["paths"]
    for path in ("/v1/chat/completions", "/v1/completions"):
        answers = paths[path]["post"]["responses"]
        assert set(answers) == {"200", "400", "401", "404", "413", "415", "429", "500", "503"}
        assert set(answers["200"]["content"]) == {"application/json", "text/event-stream"}
        assert "Retry-After" in answers["429"]["headers"]
    assert "HTTPValidationError" not in app.openapi()["components"]["schemas"]
