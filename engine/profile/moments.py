"""moments: mean and covariance of the keys of each KV head, after their rotation.

What a query's scores are over a context of such keys: normal, of mean q·mean and variance q·covariance·q,
as far as two moments tell (adaptive identification of long-context heads). A single key that stands out, a
needle, is invisible to them.

Tensors: `mean.N` [KV heads, D] and `covariance.N` [KV heads, D, D], float32, of every layer N that reads all
of its own keys; unscaled. Finding: `tokens`, how many they were taken over.
"""

from headway.engine.loaded import LoadedModel
from headway.engine.profile.artefact import Artefact, made
from headway.engine.profile.keys import TextSettings, haystacks, key_moments, tokens_of
from headway.engine.profile.progress import Progress


class Settings(TextSettings):
    """What the moments are taken over."""


def run(loaded: LoadedModel, settings: Settings, progress: Progress) -> Artefact:
    """Read haystacks and keep the running moments of their keys."""
    moments = key_moments(loaded, haystacks(loaded, settings), settings.length, progress)
    tensors = {f"mean.{layer}": each.mean.float() for layer, each in moments.items()}
    tensors |= {f"covariance.{layer}": each.covariance.float() for layer, each in moments.items()}
    return made(
        loaded, "moments", tensors, settings=settings, seeds=[settings.seed], length=settings.length,
        findings={"tokens": tokens_of(moments)},
    )  # fmt: skip
