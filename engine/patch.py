"""Attaching our attention to an unmodified Hugging Face model, and taking it off again."""

import itertools
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedConfig, PreTrainedModel

from headway.engine import latent
from headway.engine.attention import attend
from headway.engine.errors import ModelRefused

_numbers = itertools.count()


@contextmanager
def attached(model: PreTrainedModel, mask: Callable[..., Any] | None = None) -> Iterator[None]:
    """Let `model` call `headway.engine.attention.attend` in every attention layer; undone on leaving.

    Args:
        mask: what makes the attention masks; None: the model makes none.

    Raises:
        ModelRefused: the model does not attend through `AttentionInterface`.
    """
    # Not a constant: two models may be attached at once, and each takes only its own entry away.
    name = f"headway_{next(_numbers)}"
    configs = _configs(model)
    before = [config._attn_implementation_internal for config in configs]
    AttentionInterface.register(name, attend)
    if mask is not None:
        AttentionMaskInterface.register(name, mask)
    try:
        model.set_attn_implementation(name)
        if model.config.get_text_config(decoder=True)._attn_implementation != name:
            raise ModelRefused(
                f"{type(model).__name__} does not attend through transformers' AttentionInterface, so the "
                "paged cache cannot reach it"
            )
        with latent.unexpanded(model):
            yield
    finally:
        for config, implementation in zip(configs, before, strict=True):
            config._attn_implementation_internal = implementation
        AttentionInterface._global_mapping.pop(name, None)
        AttentionMaskInterface._global_mapping.pop(name, None)


@contextmanager
def computed_by(forwards: Mapping[torch.nn.Module, Callable[[torch.Tensor], torch.Tensor]]) -> Iterator[None]:
    """Let each of these modules compute by a function of ours, on the instance; undone on leaving."""
    try:
        for module, forward in forwards.items():
            vars(module)["forward"] = forward
        yield
    finally:
        for module in forwards:
            vars(module).pop("forward", None)


def _configs(model: PreTrainedModel) -> list[PreTrainedConfig]:
    found: dict[int, PreTrainedConfig] = {}
    pending = [module.config for module in model.modules() if isinstance(module, PreTrainedModel)]
    while pending:
        config = pending.pop()
        if id(config) not in found:
            found[id(config)] = config
            nested = (getattr(config, name, None) for name in config.sub_configs)
            pending.extend(item for item in nested if item is not None)
    return list(found.values())
