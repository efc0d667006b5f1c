"""RouterTraining: a layer router learns, one text after the other."""

import math
from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Annotated, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from headway.engine.config_section import Positive
from headway.engine.layer_router import LayerRouter
from headway.engine.layer_spec import LayerSpec
from headway.engine.loaded import LoadedModel
from headway.engine.profile.checkpoint import CHECKPOINT_STEPS, Checkpoint
from headway.engine.profile.lessons import LessonSettings
from headway.engine.profile.two_streams import TwoStreams

HOTTEST, COOLEST = 1.5, 1.0
"""Temperatures of the Gumbel-softmax, the first at the beginning."""
COOLING = 0.6
"""Share of the steps over which it cools, by a cosine."""
BETAS = 0.9, 0.95
"""Of AdamW: a text on which a layer was missed has large gradients, which its norm must forget soon."""


class Settings(LessonSettings):
    """A higher target makes more layers sparse, as far as the answers bear it; faster λ weigh it more."""

    steps: Positive = Field(120, description="One text each.")
    longest: Positive = Field(2048, description="Tokens of the longest text.")
    pool_size: Positive = Field(100, description="Tokens of each end of a prompt that the router sees.")
    target: Annotated[float, Field(ge=0, le=1)] = Field(0.8, description="Share of the layers to be sparse.")
    learning_rate: Annotated[float, Field(gt=0)] = 0.001
    penalty_rate: Annotated[float, Field(ge=0)] = Field(0.05, description="How fast both λ grow.")
    trials: Positive = Field(24, description="Texts that the trained router is tried on.")

    @model_validator(mode="after")
    def _ends_do_not_meet(self) -> Self:
        if 2 * self.pool_size > self.shortest // 2:
            raise ValueError(
                f"pool_size must be at most a quarter of shortest = {self.shortest}, not {self.pool_size}"
            )
        return self


class RouterTraining:
    """The router, its optimiser and the weights λ of the lack of sparse layers.

    Attributes:
        done: steps so far.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        layers: Mapping[int, LayerSpec],
        settings: Settings,
        checkpoint: Path | None,
    ) -> None:
        self._layers, self._settings = layers, settings
        self._checkpoint = Checkpoint(checkpoint, "router", settings, loaded)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(settings.seed)
            self.router = LayerRouter({idx: spec.key_dim for idx, spec in layers.items()})
        self.router.to(loaded.device)
        self._parameters = dict(self.router.named_parameters())
        self._optimiser = torch.optim.AdamW(
            self._parameters.values(), lr=settings.learning_rate, betas=BETAS, weight_decay=0.0
        )
        self._weights = torch.zeros(2, dtype=torch.float64)
        self.done = 0
        self._resume()

    def step(
        self, streams: TwoStreams, queries: Mapping[int, Tensor], ids: list[int], rows: list[int]
    ) -> None:
        """Learn from one text, whose prompt has these mean queries."""
        chances = ((self.router(queries) + self._noise()) / self._temperature()).softmax(1)[:, 1]
        # Straight through: drawn decisions forward, the gradient of their chances backward.
        drawn = (chances > 0.5).float() + (chances - chances.detach())
        lack = (self._settings.target - (1 - drawn.mean())).clamp_min(0)
        first, second = self._weights.tolist()
        self._optimiser.zero_grad()
        with self._both(streams, drawn, ids, rows) as both:
            loss = _divergence(*both) + first * lack + second * lack.square()
            loss.backward()
        self._optimiser.step()
        lacking = lack.detach().double().cpu()
        self._weights += self._settings.penalty_rate * torch.stack((lacking, lacking.square()))
        self.done += 1
        if self.done % CHECKPOINT_STEPS == 0:
            self._keep()

    @torch.no_grad()
    def loss(self, streams: TwoStreams, decisions: Tensor, ids: list[int], rows: list[int]) -> float:
        """What predictions lose by decisions [layers], 1 = full, in nats a token."""
        with self._both(streams, decisions, ids, rows) as both:
            return float(_divergence(*both))

    def _both(
        self, streams: TwoStreams, decisions: Tensor, ids: list[int], rows: list[int]
    ) -> AbstractContextManager[tuple[Tensor, Tensor]]:
        layers = zip(self._layers.items(), decisions, strict=True)
        switches = {idx: one.expand(spec.num_kv_heads) for (idx, spec), one in layers}
        return streams.log_probs(ids, switches, torch.tensor(rows, device=decisions.device))

    def _noise(self) -> Tensor:
        """Gumbel noise [layers, 2], the same in every run of this step."""
        generator = torch.Generator().manual_seed(self._settings.seed * self._settings.steps + self.done)
        uniform = torch.rand(len(self._layers), 2, generator=generator, dtype=torch.float64)
        noise = -(-uniform.clamp_min(1e-12).log()).log()
        return noise.float().to(next(self.router.parameters()).device)

    def _temperature(self) -> float:
        cooled = min(1.0, self.done / (COOLING * self._settings.steps))
        return COOLEST + (HOTTEST - COOLEST) * (1 + math.cos(math.pi * cooled)) / 2

    def _keep(self) -> None:
        adam = {
            f"adam.{name}.{key}": value
            for name, parameter in self._parameters.items()
            for key, value in self._optimiser.state[parameter].items()
        }
        counts = {"done": torch.tensor(self.done), "weights": self._weights}
        self._checkpoint.keep({**self._parameters, **adam, **counts})

    def _resume(self) -> None:
        """From a checkpoint of the same settings and model, if there is one."""
        kept = self._checkpoint.kept()
        if kept is None:
            return
        self.done, self._weights = int(kept["done"]), kept["weights"]
        for name, parameter in self._parameters.items():
            with torch.no_grad():
                parameter.copy_(kept[name])
            state = {key: kept[f"adam.{name}.{key}"] for key in ("step", "exp_avg", "exp_avg_sq")}
            self._optimiser.state[parameter] = {
                key: value.to(parameter.device if value.ndim else "cpu") for key, value in state.items()
            }


def _divergence(full: Tensor, other: Tensor) -> Tensor:
    """Kullback-Leibler divergence of log-probabilities [rows, vocab], mean over rows, in nats."""
    return (full.exp() * (full - other)).sum(1).mean()
