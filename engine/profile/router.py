"""router: which layers must read the whole context, prompt by prompt (Flux Attention's layer router).

For each layer a small network looks at the layer's mean query over the two ends of a prompt, and sends the
layer full or sparse, that is to sinks and window. The networks are trained, and nothing else of the model:
decisions are drawn by a straight-through Gumbel-softmax, and the loss is what predictions of answers lose by
them, in nats a token, plus λ₁·lack + λ₂·lack². The lack is what the sparse share of the layers falls short of
a target; both λ grow by it.

Changed from the published code: the ends are those of a preview (`engine/preview.py`), since prompts come in
chunks; the model's own predictions teach, not the text, so that no router has to mend them; to be sparser
than the target is no fault, so that it need not be a number of layers; there is one target, since nobody says
what task a prompt is; rates are higher and steps fewer; and the model's projections are not trained along.

Tensors: the networks' weights, bfloat16; `full_probability`, float32 [trials, layers], on texts that were not
trained on, NaN in layers with a sliding window, on which nothing is decided. Findings on the same texts:
`full_share`, how often each layer goes full; `sparsity`, the share of decisions for sparse; `divergence`,
what is lost, in nats a token.
"""

from collections.abc import Sequence
from statistics import fmean

import torch
from torch import Tensor

from headway.engine.layer_router import EVEN, LayerRouter
from headway.engine.loaded import LoadedModel
from headway.engine.preview import Preview
from headway.engine.profile.artefact import Artefact, made
from headway.engine.profile.haystacks import maker
from headway.engine.profile.lessons import lesson_of
from headway.engine.profile.pictures import Figure, heat_map
from headway.engine.profile.progress import Progress, tracked
from headway.engine.profile.router_training import RouterTraining, Settings
from headway.engine.profile.two_streams import Streaming, two_streams


def run(loaded: LoadedModel, settings: Settings, progress: Progress) -> Artefact:
    """Train the router, then try it on other texts.

    Raises:
        ConfigError: no haystacks can be made for this model, or no layer can be decided on.
    """
    preview = Preview(loaded, settings.pool_size)
    make = maker(loaded)
    training = RouterTraining(loaded, preview.layers, settings, progress.checkpoint)
    progress.begin("training a router", settings.steps)
    progress.advance(training.done)
    shape = Streaming(settings.sink_size, settings.window_size, settings.tile)
    with two_streams(loaded, shape, settings.recompute) as streams:

        def lesson(number: int) -> tuple[dict[int, Tensor], list[int], list[int]]:
            ids, rows = lesson_of(make, settings, "router", number)
            return preview.queries(preview.ends(ids[: rows[0] + 1])), ids, rows

        while training.done < settings.steps:
            training.step(streams, *lesson(training.done))
            progress.advance()
        router = training.router.bfloat16().float()  # as it will be stored
        trials = []
        for number in tracked(progress, "trying it", range(settings.trials)):
            queries, ids, rows = lesson(settings.steps + number)
            chances = router.chances(queries)
            trials.append((chances, training.loss(streams, (chances >= EVEN).float(), ids, rows)))
    return _artefact(loaded, settings, router, trials)


def picture(artefact: Artefact) -> Figure:
    """How probably each layer goes full, text by text."""
    chances = artefact.tensors["full_probability"]
    return heat_map(chances, "probability of reading everything", "layer", "text", low=0, high=1)


def _artefact(
    loaded: LoadedModel, settings: Settings, router: LayerRouter, trials: Sequence[tuple[Tensor, float]]
) -> Artefact:
    decided = torch.stack([chances.cpu() for chances, _ in trials])
    chances = torch.full((len(trials), len(loaded.specs)), torch.nan)
    chances[:, list(router.layers)] = decided
    full = (decided >= EVEN).double()
    weights = {name: tensor.bfloat16() for name, tensor in router.state_dict().items()}
    return made(
        loaded, "router", {**weights, "full_probability": chances},
        settings=settings, seeds=(settings.seed,), length=settings.longest,
        findings={
            "full_share": dict(zip(map(str, router.layers), full.mean(0).tolist(), strict=True)),
            "sparsity": round(1 - float(full.mean()), 4),
            "divergence": round(fmean(loss for _, loss in trials), 6),
        },
    )  # fmt: skip
