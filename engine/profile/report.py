"""The report of a folder of profiles: one HTML file with its pictures inside, readable without a network."""

import base64
import json
from collections.abc import Mapping
from pathlib import Path

from jinja2 import Environment

from headway.engine.errors import ConfigError
from headway.engine.profile import load as load_kind
from headway.engine.profile import names
from headway.engine.profile.artefact import Artefact, load
from headway.engine.profile.pictures import png

NAME = "report.html"

_PAGE = """\
<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ title }}</title>
<style>
body { font: 15px/1.5 system-ui, sans-serif; max-width: 68rem; margin: 2rem auto; padding: 0 1rem; }
img { max-width: 100%; }
table { border-collapse: collapse; }
th, td { text-align: left; vertical-align: top; padding: .15rem .8rem .15rem 0; }
th { font-weight: 600; }
code { overflow-wrap: anywhere; }
@media (prefers-color-scheme: dark) { body { background: #16181c; color: #dde; } }
</style>
<h1>{{ title }}</h1>
{% for part in parts %}
<section>
<h2>{{ part.kind }}</h2>
<p>{{ part.text }}</p>
{% if part.image %}<img alt="{{ part.kind }}" src="data:image/png;base64,{{ part.image }}">{% endif %}
<table>
{% for name, value in part.rows %}<tr><th>{{ name }}</th><td><code>{{ value }}</code></td></tr>
{% endfor %}</table>
</section>
{% endfor %}
</html>
"""


def write(folder: Path) -> Path:
    """Draw every profile in a folder, each as KIND.png beside it, and all of them in one page.

    Returns:
        The page.

    Raises:
        ConfigError: a profile cannot be read, or matplotlib is not installed.
    """
    parts = []
    models: dict[str, None] = {}
    for kind in names():
        if not (folder / f"{kind}.json").is_file():
            continue
        artefact = load(folder / kind)
        if artefact.facts.kind != kind:
            raise ConfigError(f"{folder / kind}.json holds a profile of the kind {artefact.facts.kind!r}")
        models[artefact.facts.model] = None
        image = _picture(artefact)
        if image is not None:
            (folder / f"{kind}.png").write_bytes(image)
        parts.append(_part(artefact, image))
    title = f"Profiles of {', '.join(models)}"
    page = Environment(autoescape=True).from_string(_PAGE).render(title=title, parts=parts)
    path = folder / NAME
    path.write_text(page, encoding="utf-8")
    return path


def _picture(artefact: Artefact) -> bytes | None:
    draw = getattr(load_kind(artefact.facts.kind), "picture", None)
    return None if draw is None else png(draw(artefact))


def _part(artefact: Artefact, image: bytes | None) -> Mapping[str, object]:
    facts = artefact.facts
    shapes = {name: list(tensor.shape) for name, tensor in sorted(artefact.tensors.items())}
    provenance = facts.model_dump(mode="json", exclude={"findings", "version", "kind"})
    rows = [
        (name, json.dumps(value))
        for name, value in {**facts.findings, **provenance, "tensors": shapes}.items()
    ]
    text = (load_kind(facts.kind).__doc__ or "").partition("\n\n")[0].partition(": ")[2]
    return {
        "kind": facts.kind,
        "text": f"{text[:1].upper()}{text[1:]}",
        "image": None if image is None else base64.b64encode(image).decode(),
        "rows": rows,
    }
