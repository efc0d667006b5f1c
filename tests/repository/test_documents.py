"""The documents say what the code does."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

from pydantic import BaseModel

from headway.engine.config import EngineConfig
from headway.server import chat, completions, routes
from headway.server.schema import ChatRequest, CompletionRequest
from headway.server.settings import ServerConfig

DOCUMENTS = (
    *("README.md", "CONTRIBUTING.md", "CHANGELOG.md"),
    *("docs/architecture.md", "docs/configuration.md", "docs/recipes.md", "docs/profiles.md", "docs/api.md"),
)


def defaults(schema: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, str]]:
    """(dotted key, default as JSON) of every key that has one, those of optional sections included."""
    for name, field in schema.model_fields.items():
        if field.is_required():
            continue
        default = field.get_default(call_default_factory=True)
        if isinstance(default, BaseModel):
            yield from defaults(type(default), f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", json.dumps(default)
        if default is None:
            for section in get_args(field.annotation):
                if isinstance(section, type) and issubclass(section, BaseModel):
                    yield from defaults(section, f"{prefix}{name}.")


def test_every_key_is_documented_with_its_default(root: Path) -> None:
    text = (root / "docs" / "configuration.md").read_text(encoding="utf-8")
    documented = re.findall(r"^\| `([\w.]+)` \| `(.+?)` \|", text, re.MULTILINE)
    assert documented == [*defaults(EngineConfig), *defaults(ServerConfig, "server.")]


def test_every_route_is_documented(root: Path) -> None:
    text = (root / "docs" / "api.md").read_text(encoding="utf-8")
    served = {
        f"{method} {route.path.replace(':path', '')}"
        for module in (chat, completions, routes)
        for route in module.router.routes
        for method in route.methods
    }
    assert set(re.findall(r"`((?:GET|POST) /[\w/{}]+)`", text)) == served


def test_the_documented_fields_exist(root: Path) -> None:
    text = (root / "docs" / "api.md").read_text(encoding="utf-8")
    table = text.split("| field | meaning |")[1].split("\n\n")[0]
    fields = {name for row in table.splitlines()[2:] for name in re.findall(r"`(\w+)`", row.split("|")[1])}
    assert len(fields) > 10
    assert fields <= set(ChatRequest.model_fields) | set(CompletionRequest.model_fields)


def test_files_that_are_named_exist(root: Path) -> None:
    missing = []
    for name in DOCUMENTS:
        text = (root / name).read_text(encoding="utf-8")
        for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", text):
            if not ((root / name).parent / target).exists():
                missing.append(f"{name}: {target}")
        for target in re.findall(r"`((?:server|engine|kernels|tests|configs|docker)/[\w./-]*)`", text):
            if not (root / target).exists():
                missing.append(f"{name}: {target}")
    assert missing == []
