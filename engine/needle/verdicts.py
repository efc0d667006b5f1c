"""Whether needle answers exactly, behind a haystack that is read densely or in linear time.

The answer is fed along and is exact when every one of its tokens, the end token included, is the arg-max:
just what greedy decoding would give.
"""

from collections.abc import Callable, Collection
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, DynamicCache, PreTrainedModel

from headway.engine.needle import WEIGHTS
from headway.engine.needle.export import shape_of
from headway.engine.needle.model import Needle
from headway.engine.needle.reading import answer, line_up, read
from headway.engine.needle.tasks import Tail

TOGETHER = 8
"""Questions asked at once behind a haystack read in linear time; each needs memory in its length."""

Judge = Callable[[list[int], list[Tail]], list[bool]]
"""Whether each (question, answer) is answered exactly behind the ids of a common haystack."""


def load(folder: Path = WEIGHTS) -> PreTrainedModel:
    """The model in `folder`, in float32."""
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    return model.eval()


def trainable(model: PreTrainedModel) -> Needle:
    """The same weights in the module that needle is trained in."""
    state = {n.removeprefix("model."): p for n, p in model.state_dict().items() if n != "lm_head.weight"}
    needle = Needle(replace(shape_of(state), rope_theta=model.config.rope_parameters["rope_theta"]))
    needle.load_state_dict(state)
    return needle.eval()


def dense(model: PreTrainedModel) -> Judge:
    """Every token sees all before it. A haystack is prefilled once; each question continues its cache."""
    return partial(_dense, model)


def far(model: PreTrainedModel, layers: Collection[int]) -> Judge:
    """Questions see all of a haystack in `layers`; all else sees its surroundings only (see `reading.read`).

    Raises:
        ValueError: the model has no such layer, or none is named.
    """
    count = model.config.num_hidden_layers
    if not layers or not all(0 <= layer < count for layer in layers):
        raise ValueError(f"far: {list(layers)} are not layers of the model; allowed are 0 to {count - 1}")
    return partial(_far, trainable(model), layers)


@torch.inference_mode()
def _dense(model: PreTrainedModel, haystack: list[int], tails: list[Tail]) -> list[bool]:
    cache = DynamicCache(config=model.config)
    model(torch.tensor([haystack]), past_key_values=cache, logits_to_keep=1)
    exact = []
    for ask, wanted in tails:
        ids = torch.tensor([ask + wanted])
        logits: Tensor = model(ids, past_key_values=cache, logits_to_keep=len(wanted) + 1).logits
        exact.append(bool((logits[0, :-1].argmax(-1) == torch.tensor(wanted)).all()))
        cache.crop(-ids.shape[1])
    return exact


@torch.inference_mode()
def _far(model: Needle, layers: Collection[int], haystack: list[int], tails: list[Tail]) -> list[bool]:
    kept = read(model, torch.tensor([haystack]), layers)
    exact = []
    for first in range(0, len(tails), TOGETHER):
        together = tails[first : first + TOGETHER]
        asked = line_up(len(haystack), together)
        logits = model.logits(answer(model, kept, asked)[0, :-1])
        right, owner = logits.argmax(-1) == asked.ids[0, 1:], asked.answer[0, 1:]
        exact += [bool(right[owner == row].all()) for row in range(len(together))]
    return exact
