"""Our own OpenAPI document, taken at its word by schemathesis."""

from collections.abc import Callable
from typing import Any

import pytest
import schemathesis
from fastapi import FastAPI
from hypothesis import HealthCheck, settings
from schemathesis.specs.openapi.checks import positive_data_acceptance

KEY = "a-key"
HEADERS = {"Authorization": f"Bearer {KEY}"}
# Whether token ids, templates and lengths fit is the model's to say, and not in the document.
UNKNOWABLE = [positive_data_acceptance]


@pytest.fixture
def document(make_app: Callable[..., FastAPI]) -> Any:
    return schemathesis.openapi.from_asgi("/openapi.json", make_app(api_keys=[KEY]), headers=HEADERS)


schema = schemathesis.pytest.from_fixture("document")
relaxed = {"deadline": None, "suppress_health_check": list(HealthCheck)}


@schema.parametrize()
@settings(max_examples=8, **relaxed)
def test_answers_are_as_documented(case: schemathesis.Case) -> None:
    case.call_and_validate(headers=HEADERS, excluded_checks=UNKNOWABLE)


@pytest.mark.slow
@schema.parametrize()
@settings(max_examples=300, **relaxed)
def test_answers_are_as_documented_at_length(case: schemathesis.Case) -> None:
    case.call_and_validate(headers=HEADERS, excluded_checks=UNKNOWABLE)


def test_document_knows_all_errors_and_no_422(app: FastAPI) -> None:
    paths = app.openapi()["paths"]
    for path in ("/v1/chat/completions", "/v1/completions"):
        answers = paths[path]["post"]["responses"]
        assert set(answers) == {"200", "400", "401", "404", "413", "415", "429", "500", "503"}
        assert set(answers["200"]["content"]) == {"application/json", "text/event-stream"}
        assert "Retry-After" in answers["429"]["headers"]
    assert "HTTPValidationError" not in app.openapi()["components"]["schemas"]
