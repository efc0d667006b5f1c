"""The self-check refuses a spec that does not describe the model."""

import dataclasses

import pytest

from headway.engine.config import ModelConfig
from headway.engine.errors import ModelRefused
from headway.engine.loading import load
from headway.engine.self_check import self_check

SABOTAGE = {
    "scale": ("llama", {"scale": 0.26}),
    "window": ("llama", {"window": 8}),
    "no window": ("gemma3", {"window": None}),
    "softcap": ("gemma2", {"softcap": None}),
    "sinks": ("gpt-oss", {"sinks": None}),
    "another layer's KV": ("gemma4", {"kv_source": 2}),
    "key size": ("llama", {"key_dim": 24}),
}


@pytest.mark.parametrize("what", SABOTAGE)
def test_a_sabotaged_spec_is_refused(load_family, what):
    family, change = SABOTAGE[what]
    loaded = load_family(family)
    first = dataclasses.replace(loaded.specs[0], **change)
    with pytest.raises(ModelRefused, match=type(loaded.model).__name__):
        self_check(dataclasses.replace(loaded, specs=(first, *loaded.specs[1:])))


def test_a_true_spec_passes(load_family):
    self_check(load_family("llama"))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_sharp_attention_in_half_precision_passes_and_a_wrong_scale_does_not(dtype):
    loaded = load(ModelConfig(name="needle", dtype=dtype))
    specs = tuple(dataclasses.replace(spec, scale=spec.scale / 2) for spec in loaded.specs)
    with pytest.raises(ModelRefused, match="logits"):
        self_check(dataclasses.replace(loaded, specs=specs))
