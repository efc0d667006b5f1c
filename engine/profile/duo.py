"""duo: which KV heads need the whole context, by optimisation (DuoAttention, arXiv 2410.10819).

Each KV head has a gate between full attention (1) and sinks with a window (0). The gates are trained, and
nothing else of the model, to keep its last hidden states where it answers questions on synthetic passkeys,
while their sum is pushed down. What keeps its gate up retrieves. Route by ranking: where the values lie says
little (of Llama-3.1-8B's published gates, half are above 0.99).

As published but for two things: lengths below sinks and window would teach nothing and are not drawn; the
window is that of `tile_attention`, before a tile of queries, as in serving.

Tensors: `kv_heads` [layers, KV heads], the gates; NaN in layers with a sliding window.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor

from headway.engine.config_section import Positive
from headway.engine.errors import ConfigError
from headway.engine.layer_spec import LayerSpec
from headway.engine.loaded import LoadedModel
from headway.engine.profile.artefact import Artefact, made
from headway.engine.profile.checkpoint import CHECKPOINT_STEPS, Checkpoint
from headway.engine.profile.haystacks import maker
from headway.engine.profile.head_scores import table
from headway.engine.profile.lessons import LessonSettings, lesson_of
from headway.engine.profile.pictures import Figure, heat_map
from headway.engine.profile.progress import Progress
from headway.engine.profile.two_streams import Streaming, TwoStreams, two_streams

RAMP = 0.2
"""Share of the steps over which the learning rate rises, and falls."""
FLOOR = 0.1
"""Share of the learning rate that it begins and ends with."""


class Settings(LessonSettings):
    """More steps separate the heads better; longer texts show more of what streaming loses."""

    steps: Positive = Field(240, description="One text each; the paper takes 2000.")
    learning_rate: Annotated[float, Field(gt=0)] = 0.02
    penalty: Annotated[float, Field(ge=0)] = Field(0.05, description="Weight of the mean gate in the loss.")


def run(loaded: LoadedModel, settings: Settings, progress: Progress) -> Artefact:
    """Train the gates.

    Raises:
        ConfigError: no haystacks can be made for this model, or no layer has heads to tell apart.
    """
    specs = [spec for spec in loaded.specs if spec.window is None]
    if not specs or any(spec.latent_dim is not None for spec in specs):
        raise ConfigError("duo: the model has no layers with KV heads that read the whole context")
    make = maker(loaded)
    training = _Training(loaded, specs, settings, progress.checkpoint)
    progress.begin("training gates", settings.steps)
    progress.advance(training.done)
    shape = Streaming(settings.sink_size, settings.window_size, settings.tile)
    with two_streams(loaded, shape, settings.recompute) as streams:
        while training.done < settings.steps:
            training.step(streams, *lesson_of(make, settings, "duo", training.done))
            progress.advance()
    gates = {spec.layer_idx: gate for spec, gate in zip(specs, training.by_layer(), strict=True)}
    missing = [torch.full((spec.num_kv_heads,), torch.nan) for spec in loaded.specs]
    scores = table([gates.get(spec.layer_idx, missing[spec.layer_idx]) for spec in loaded.specs])
    return made(
        loaded, "duo", {"kv_heads": scores},
        settings=settings, seeds=(settings.seed,), length=settings.longest,
        findings={"distance": round(training.distance, 6)},
    )  # fmt: skip


def picture(artefact: Artefact) -> Figure:
    """Heat map of the gates."""
    return heat_map(artefact.tensors["kv_heads"], "gate", "KV head", "layer", low=0, high=1)


class _Training:
    """The gates and their optimiser.

    Attributes:
        gates: of all heads, layer by layer.
        done: steps so far.
        distance: mean squared difference of the hidden states, running mean.
    """

    def __init__(
        self, loaded: LoadedModel, specs: Sequence[LayerSpec], settings: Settings, checkpoint: Path | None
    ) -> None:
        self._specs, self._settings = specs, settings
        self._checkpoint = Checkpoint(checkpoint, "duo", settings, loaded)
        self._sizes = [spec.num_kv_heads for spec in specs]
        self.gates = torch.ones(sum(self._sizes), device=loaded.device, requires_grad=True)
        self._optimiser = torch.optim.AdamW([self.gates], lr=settings.learning_rate, weight_decay=0.0)
        self.done, self.distance = 0, 0.0
        self._resume()

    def by_layer(self) -> tuple[Tensor, ...]:
        """The gates [Hkv] of each layer, in [0, 1]."""
        return torch.split(self.gates.detach().clamp(0, 1), self._sizes)

    def step(self, streams: TwoStreams, ids: list[int], rows: list[int]) -> None:
        """Learn from one text."""
        with torch.no_grad():
            self.gates.clamp_(0, 1)
        for group in self._optimiser.param_groups:
            group["lr"] = self._settings.learning_rate * self._pace()
        self._optimiser.zero_grad()
        parts = torch.split(self.gates, self._sizes)
        gates = {spec.layer_idx: part for spec, part in zip(self._specs, parts, strict=True)}
        with streams.hidden(ids, gates, torch.tensor(rows, device=self.gates.device)) as (full, gated):
            distance = (full - gated).square().mean()
            loss = distance + self._settings.penalty * self.gates.abs().mean()
            loss.backward()  # type: ignore[no-untyped-call]
        self._optimiser.step()
        self.done += 1
        self.distance += (distance.item() - self.distance) / min(self.done, CHECKPOINT_STEPS)
        if self.done % CHECKPOINT_STEPS == 0:
            self._keep()

    def _pace(self) -> float:
        """The trapezoid: up, level, down."""
        ramp = max(1.0, RAMP * self._settings.steps)
        nearest = min(self.done, self._settings.steps - 1 - self.done)
        return FLOOR + (1 - FLOOR) * min(1.0, nearest / ramp)

    def _keep(self) -> None:
        state: dict[str, Any] = self._optimiser.state[self.gates]
        self._checkpoint.keep(
            {
                "gates": self.gates,
                "done": torch.tensor(self.done),
                "distance": torch.tensor(self.distance, dtype=torch.float64),
                **{f"adam.{name}": tensor for name, tensor in state.items()},
            }
        )

    def _resume(self) -> None:
        """From a checkpoint of the same settings and model, if there is one."""
        tensors = self._checkpoint.kept()
        if tensors is None:
            return
        with torch.no_grad():
            self.gates.copy_(tensors["gates"])
        self.done, self.distance = int(tensors["done"]), float(tensors["distance"])
        self._optimiser.state[self.gates] = {
            name.removeprefix("adam."): tensor.to(self.gates.device if tensor.ndim else "cpu")
            for name, tensor in tensors.items()
            if name.startswith("adam.")
        }
