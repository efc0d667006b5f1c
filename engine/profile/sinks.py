"""sinks: which tokens draw attention whatever is asked: the first ones, and secondary ones further on.

Primary: a place among the first tokens is a sink of a head if the last rows of a text give it more than
`threshold` of their attention on average (the rule of ACT, arXiv 2406.15765). Secondary (Secondary Attention
Sinks, arXiv 2512.22213): a token whose hidden state points where the first token's does, |cosine| > `cosine`,
while the first token's norm stands out, in more than `least` but not more than `most` of the layers. The
published rule counts 5 and all but 15 layers; shares serve shallow models, too.

Tensors: `initial_mass` [layers, query heads, places], mean attention to each of the first tokens;
`first_norm` [layers - 1], the first token's norm over the median one, behind each layer but the last;
`like_first` [layers - 1], the share of the other tokens that point like it.
"""

from collections import Counter
from itertools import pairwise
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor
from torch.nn.functional import cosine_similarity

from headway.engine.config_section import Positive, Section
from headway.engine.errors import ConfigError
from headway.engine.layer_spec import LayerSpec
from headway.engine.loaded import LoadedModel
from headway.engine.profile.artefact import Artefact, made
from headway.engine.profile.attention_rows import row_weights
from headway.engine.profile.haystacks import maker
from headway.engine.profile.head_scores import table
from headway.engine.profile.pictures import Figure, heat_map
from headway.engine.profile.progress import Progress, tracked
from headway.engine.profile.watched_run import CHUNK, Watch, WatchedRun

Share = Annotated[float, Field(ge=0, le=1)]
PROBE_ROWS = 64
TOKENS_NAMED = 16
"""How many of the tokens that occur most often as secondary sinks are named."""


class Settings(Section):
    """Which texts are read, and what counts as a sink."""

    length: Annotated[int, Field(ge=256)] = Field(4096, description="Tokens of a text.")
    texts: Positive = Field(6, description="How many are read.")
    seed: int = Field(0, description="Seed of the texts.")
    places: Positive = Field(16, description="First tokens that may be primary sinks.")
    threshold: Share = Field(0.1, description="Mean attention from which a first token is a sink.")
    norm: Annotated[float, Field(gt=1)] = Field(
        5.0, description="The first token's norm over the median one, from which it stands out."
    )
    cosine: Share = Field(0.9, description="From which a token points like the first one.")
    least: Share = Field(0.1, description="Share of the layers in which a secondary sink does, at least.")
    most: Share = Field(0.65, description="Share of the layers in which it does, at most.")


def run(loaded: LoadedModel, settings: Settings, progress: Progress) -> Artefact:
    """Read the texts, watching attention and hidden states.

    Raises:
        ConfigError: no texts can be made for this model, or it has one layer only.
    """
    if len(loaded.specs) < 2:
        raise ConfigError("sinks: a model with one layer has no hidden states between layers")
    make = maker(loaded)
    mass: dict[int, Tensor] = {}
    norms, likes, named, tokens = [], [], Counter[int](), 0

    def watch(spec: LayerSpec, query: Tensor, keys: Tensor) -> None:
        weights = row_weights(spec, query[-PROBE_ROWS:], keys)[..., : settings.places].mean(0).cpu()
        mass[spec.layer_idx] = mass.get(spec.layer_idx, 0.0) + weights / settings.texts

    with WatchedRun(loaded, settings.length) as watched:
        for index in tracked(progress, "texts", range(settings.texts)):
            ids = make(settings.length, index, 1, settings.seed).ids
            ratio, like = resemblance(*_read(watched, ids, watch), settings)
            found = secondary(like, settings, len(loaded.specs))
            named.update(ids[place] for place in found)
            norms.append(ratio)
            likes.append(like.float().mean(1))
            tokens += len(ids) - 1
    initial = table([mass[spec.layer_idx] for spec in loaded.specs])
    first_norm = torch.stack(norms).mean(0)
    return made(
        loaded,
        "sinks",
        {"initial_mass": initial, "first_norm": first_norm, "like_first": torch.stack(likes).mean(0)},
        settings=settings,
        seeds=[settings.seed],
        length=settings.length,
        findings={
            "sink_size": sink_size(initial, settings.threshold),
            "sink_heads": int((initial.nan_to_num().amax(-1) > settings.threshold).sum()),
            "standing_out_layers": (first_norm >= settings.norm).nonzero().flatten().tolist(),
            "secondary_tokens": [list(item) for item in named.most_common(TOKENS_NAMED)],
            "secondary_share": sum(named.values()) / tokens,
        },
    )


def sink_size(initial_mass: Tensor, threshold: float) -> int:
    """How many first tokens must be kept so that no head loses a sink among them."""
    places = (initial_mass.nan_to_num() > threshold).flatten(0, 1).any(0).nonzero().flatten()
    return int(places[-1]) + 1 if len(places) else 0


def resemblance(norms: Tensor, cosines: Tensor, settings: Settings) -> tuple[Tensor, Tensor]:
    """How the other tokens resemble the first one.

    Args:
        norms, cosines: [layers, n], of each token's hidden state, and to the first token's; n > 1.

    Returns:
        float32 [layers], the first token's norm over the others' median one; bool [layers, n - 1], which of
        them point like it where it stands out.
    """
    ratio = norms[:, 0] / norms[:, 1:].median(1).values
    like = cosines[:, 1:].abs() > settings.cosine
    return ratio, like & (ratio >= settings.norm)[:, None]


def secondary(like: Tensor, settings: Settings, num_layers: int) -> list[int]:
    """Places of the secondary sinks; `like` is bool [layers, n - 1], of the tokens behind the first."""
    count = like.sum(0)
    chosen = (count > settings.least * num_layers) & (count <= settings.most * num_layers)
    return [int(place) + 1 for place in chosen.nonzero().flatten()]


def picture(artefact: Artefact) -> Figure:
    """Heat map of the attention that the first tokens get."""
    mass = artefact.tensors["initial_mass"].sum(-1)
    return heat_map(mass, "attention to the first tokens", "query head", "layer", low=0, high=1)


def _read(run: WatchedRun, ids: list[int], watch: Watch) -> tuple[Tensor, Tensor]:
    """Norms and cosines to the first token of the hidden states behind each layer but the last, float32
    [layers - 1, n] on the CPU; the last chunk is watched."""
    norms, cosines, first = [], [], None
    # The first chunk is the short one: the last has rows enough to probe with.
    edges = [0, *range(len(ids) % CHUNK or CHUNK, len(ids) + 1, CHUNK)]
    for start, end in pairwise(edges):
        watching = watch if end == len(ids) else None
        output = run.step(ids[start:end], start, watching, logits=1, output_hidden_states=True)
        # The first are the embeddings, the last have gone through the final norm; of several streams, one.
        states = [state.reshape(-1, *state.shape[-2:])[0].float() for state in output.hidden_states[1:-1]]
        first = first or [state[0] for state in states]
        norms.append(torch.stack([state.norm(dim=-1) for state in states]).cpu())
        pairs = zip(states, first, strict=True)
        cosines.append(torch.stack([cosine_similarity(state, own[None], -1) for state, own in pairs]).cpu())
    return torch.cat(norms, 1), torch.cat(cosines, 1)
