"""layers: what each layer needs of the context and what it could take over from a layer before it; from that
a policy of full and reuse layers for the decode method hylra (HyLRA, arXiv 2602.00777).

Sensitivity of a layer: the divergence of the model's predictions from dense ones, in nats a token, when that
layer alone reads sinks and window only. Overlap of layer i with a later layer j: of the attention that j's
own list catches beside sinks and window, the share that i's list catches. A layer that reuses i's list loses
its sensitivity times what the overlap lacks. UCM's code, which follows HyLRA, counts common tokens instead,
and its programme weighs the overlap alone; but a long list holds mostly tokens that hardly matter, and where
nothing depends on a layer its overlap need not be large.

Tensors, float32: `sensitivity` [layers], NaN where a layer has a window; `kv_heads` [layers, KV heads], the
same for each head, by which `recipe.heads` routes whole layers; `overlap` [layers, layers], at [i, j] with
i <= j, NaN where j cannot read i's list. Findings: `full_layers`, the policy; `divergence`, what
hylra then loses on the same answers, in nats a token: two layers that stand in for each other lose nothing
one at a time, and only this shows it; `policies`, all that no other beats in full layers, worst and total
loss at once; `tokens`, how many predictions were compared.
"""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from headway.engine.config_section import Positive, Section
from headway.engine.errors import ConfigError
from headway.engine.layer_spec import LayerSpec
from headway.engine.loaded import LoadedModel
from headway.engine.methods.decode import hylra, streaming
from headway.engine.methods.decode.base import DecodeMethod
from headway.engine.profile.artefact import Artefact, made
from headway.engine.profile.haystacks import Haystack, maker
from headway.engine.profile.layer_policies import LayerPolicy, policies
from headway.engine.profile.layer_probes import Blinded, Overlaps
from headway.engine.profile.pictures import Figure, heat_map
from headway.engine.profile.progress import Progress, tracked
from headway.engine.profile.reader import Reader, reader
from headway.engine.profile.watched_run import PAGE_SIZE
from headway.engine.selection.settings import Count, Share


class Settings(Section):
    """More haystacks and questions measure better; more full layers read more and lose less."""

    length: Positive = Field(4096, description="Tokens of a haystack.")
    haystacks: Positive = Field(3, description="How many are read.")
    questions: Positive = Field(4, description="Answers decoded about each, at most.")
    seed: int = Field(0, description="Seed of the haystacks.")
    budget: Positive = Field(512, description="Tokens of the list that a full layer hands on.")
    sink_size: Count = Field(64, description="First tokens, always read.")
    window_size: Positive = Field(256, description="Latest tokens, always read.")
    full_share: Share = Field(
        0.33, description="Layers that may be full, as a share of those without window."
    )

    @model_validator(mode="after")
    def _something_is_left_out(self) -> Self:
        if not self.sink_size + self.window_size < self.budget < self.length:
            raise ValueError("must be: sink_size + window_size < budget < length")
        return self


def run(loaded: LoadedModel, settings: Settings, progress: Progress) -> Artefact:
    """Decode answers with one layer blinded after the other, and find the policy that loses least.

    Raises:
        ConfigError: a setting does not fit the model; says which and what is allowed.
    """
    layers = [spec.layer_idx for spec in loaded.specs if spec.window is None]
    if settings.length > loaded.max_context:
        raise ConfigError(f"length: must be at most the model's {loaded.max_context}, not {settings.length}")
    if not layers:
        raise ConfigError("layers: every layer of this model has a window; none could reuse a list")
    make = maker(loaded)
    haystacks = [
        make(settings.length, index, settings.questions, settings.seed) for index in range(settings.haystacks)
    ]
    if not any(each.questions for each in haystacks):
        raise ConfigError(f"length: haystacks of {settings.length} tokens hold no fact to ask for")
    always = {"dense_below": 0, "sink_size": settings.sink_size, "window_size": settings.window_size}
    reusing = hylra.Settings(**always, budget=settings.budget)
    overlaps = Overlaps(reusing, loaded.specs, PAGE_SIZE)
    with reader(loaded, _longest(haystacks)) as text:
        blinded = [Blinded(streaming.Settings(**always), layer) for layer in layers]
        sensitivity = torch.full((len(loaded.specs),), math.nan, dtype=torch.float64)
        sensitivity[layers] = _divergences(text, haystacks, overlaps, blinded, progress)
        overlap = overlaps.shares()
        found = weighed_policies(sensitivity, overlap, layers, settings.full_share)
        chosen = hylra.Method(reusing.model_copy(update={"full_layers": min(found).full}))
        chosen.check(loaded.specs, PAGE_SIZE)
        (divergence,) = _divergences(text, haystacks, None, [chosen], progress).tolist()
    tensors = {
        "sensitivity": sensitivity.float(),
        "kv_heads": _for_heads(sensitivity.float(), loaded.specs),
        "overlap": overlap.float(),
    }
    findings = {
        "full_layers": list(min(found).full),
        "divergence": divergence,
        "policies": [
            {"full_layers": list(policy.full), "worst": policy.worst, "total": policy.total}
            for policy in found
        ],
        "tokens": sum(len(one.answer) for each in haystacks for one in each.questions),
    }
    return made(
        loaded, "layers", tensors, settings=settings, seeds=[settings.seed], length=_longest(haystacks),
        findings=findings,
    )  # fmt: skip


def weighed_policies(
    sensitivity: Tensor, overlap: Tensor, layers: Sequence[int], full_share: float
) -> list[LayerPolicy]:
    """The policies worth a choice among `layers`, in their numbers.

    Args:
        sensitivity, overlap: [layers of the model] and [layers, layers], as the profile holds them.

    Raises:
        ConfigError: so few full layers cannot serve.
    """
    lost = sensitivity * (1 - overlap).clamp_min(0)
    losses = lost[layers][:, layers].nan_to_num(nan=math.inf).tolist()
    most = math.ceil(full_share * len(layers))
    found = policies(losses, most)
    if not found:
        raise ConfigError(
            f"full_share: {full_share} makes {most} of {len(layers)} layers full, too few for a model whose "
            "layers differ in KV heads"
        )
    return [replace(policy, full=tuple(layers[place] for place in policy.full)) for policy in found]


def picture(artefact: Artefact) -> Figure:
    """The overlap of all layers, and below each its sensitivity."""
    full = ", ".join(map(str, artefact.facts.findings["full_layers"]))
    figure = heat_map(
        artefact.tensors["overlap"], f"overlap of critical tokens; full layers: {full}",
        "layer that reads, and its sensitivity in nats a token", "layer that hands on", low=0, high=1,
    )  # fmt: skip
    labels = [f"{layer}: {value:.1g}" for layer, value in enumerate(artefact.tensors["sensitivity"].tolist())]
    figure.axes[0].set_xticks(range(len(labels)), labels, rotation=90, size=7)
    return figure


def _divergences(
    text: Reader,
    haystacks: Sequence[Haystack],
    dense: DecodeMethod[Any] | None,
    methods: Sequence[DecodeMethod[Any]],
    progress: Progress,
) -> Tensor:
    """What the predictions by each method differ from those by `dense`: fp64 [methods], nats a token."""
    total, tokens = torch.zeros(len(methods), dtype=torch.float64), 0
    for number, haystack in enumerate(haystacks):
        text.read(haystack.ids)
        for question in tracked(progress, f"haystack {number + 1}", haystack.questions):
            prompt = haystack.ids + question.ask
            text.read(prompt, start=len(haystack.ids))
            expected = text.answer(prompt, question.answer, dense)
            for place, method in enumerate(methods):
                total[place] += _divergence(expected, text.answer(prompt, question.answer, method))
            tokens += len(question.answer)
    return total / tokens


def _for_heads(scores: Tensor, specs: Sequence[LayerSpec]) -> Tensor:
    """[layers, KV heads] of scores [layers]; NaN where a layer has fewer heads than the widest."""
    counts = torch.tensor([spec.num_kv_heads for spec in specs])
    there = torch.arange(int(counts.max())) < counts.unsqueeze(1)
    return torch.where(there, scores.unsqueeze(1), math.nan)


def _longest(haystacks: Sequence[Haystack]) -> int:
    return max(
        len(each.ids) + max((len(one.ask) + len(one.answer) for one in each.questions), default=0)
        for each in haystacks
    )


def _divergence(dense: Tensor, other: Tensor) -> float:
    """Kullback-Leibler divergence of log-probabilities [tokens, vocab], summed over tokens."""
    return max(0.0, float((dense.exp() * (dense - other)).sum(dtype=torch.float64)))
