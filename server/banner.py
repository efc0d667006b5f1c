"""What `headway serve` says when it is ready."""

import ipaddress
import json
from typing import Any

from rich.console import Console
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

import headway
from headway.engine.messages import ModelInfo
from headway.engine.offer import Offer
from headway.engine.offers import Offers
from headway.server.settings import ServerConfig

NEEDLE_CAN = (
    "needle, the embedded model, finds a number in a long text by the key that it follows, such as 'The door "
    "code for crimson falcon is 4829131.' Ask it for one key at a time, about a text that you send along."
)
NEEDLE_CANNOT = (
    "It knows nothing else: it does not chat, reason, summarise, write or translate, and what it says to "
    "other questions means nothing. For those, serve another model: headway serve PATH_OR_HUB_ID"
)
_NEEDLE_QUESTION = "The secret code for Paris is 7301942.\n\nWhat is the secret code for Paris?"
_OTHER_QUESTION = "Say hello in five languages."


def show(
    console: Console,
    info: ModelInfo,
    model: str,
    offers: Offers,
    config: ServerConfig,
    port: int,
    embedded: bool,
) -> None:
    """Print the banner; `port` is where the server listens, `embedded` says that the model is needle."""
    url = f"http://{_host(config.host)}:{port}"
    facts = Table.grid(padding=(0, 2))
    facts.add_column(style="bold")
    facts.add_column()
    facts.add_row("model", Text(f"{model} ({info.dtype} on {info.device})"))
    facts.add_row("plan", Text(info.plan))
    facts.add_row("prefill", Text(_recipe(offers.prefill)))
    facts.add_row("decode", Text(_recipe(offers.decode)))
    if offers.heads is not None:
        facts.add_row("heads", Text(f"{offers.heads.sparsity:.0%} of them stream, by {offers.heads.profile}"))
    if offers.layers is not None:
        facts.add_row("layers", Text(f"full or sparse by request, by {offers.layers.router}"))
    facts.add_row("API", Text(f"{url}/v1   reference: {url}/docs   metrics: {url}/metrics"))
    facts.add_row("API keys", _access(config))
    if embedded:
        facts.add_row("can", Text(NEEDLE_CAN))
        facts.add_row("cannot", Text(NEEDLE_CANNOT))
    console.print(Panel(facts, title=f"Headway {headway.__version__}", title_align="left"))
    console.print("Try it:\n")
    console.print(Text(_example(url, model, bool(config.api_keys), embedded), style="cyan"), soft_wrap=True)
    console.print()


def _host(host: str) -> str:
    if host in {"0.0.0.0", "::", ""}:
        return "127.0.0.1"
    return f"[{host}]" if ":" in host else host


def _recipe(offer: Offer[Any, Any]) -> str:
    settings = offer.default
    said = ", ".join(
        f"{name} {getattr(settings, name)}" for name in sorted(settings.model_fields_set - {"method"})
    )
    serves = f"{settings.method} ({said})" if said else settings.method
    others = [name for name in offer.methods if name != settings.method]
    return f"{serves}; requests may choose {', '.join(others)}" if others else serves


def _access(config: ServerConfig) -> Text:
    if config.api_keys:
        return Text(f"{len(config.api_keys)} accepted")
    if _is_loopback(config.host):
        return Text("none needed; only this machine can connect")
    warning = "NONE NEEDED, AND THE NETWORK CAN CONNECT: set HEADWAY_API_KEYS or server.api_keys"
    return Text(warning, style="bold red")


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _example(url: str, model: str, key: bool, embedded: bool) -> str:
    question = _NEEDLE_QUESTION if embedded else _OTHER_QUESTION
    body = {"model": model, "temperature": 0, "messages": [{"role": "user", "content": question}]}
    header = "-H 'Authorization: Bearer YOUR_KEY' " if key else ""
    sent = json.dumps(body).replace("'", "'\\''")
    return (
        f"curl {url}/v1/chat/completions {header}-H 'Content-Type: application/json' -d '{sent}'\n\n"
        f"from openai import OpenAI\n"
        f"client = OpenAI(base_url={url + '/v1'!r}, api_key={'YOUR_KEY' if key else 'none'!r})"
    )
