"""Attaching is undone on leaving, and nothing happens before it."""

import pytest
import torch
from transformers import AttentionInterface, AttentionMaskInterface

from headway.engine import forward_context
from headway.engine.patch import attached

from .driver import drive


def state(model) -> dict[str, object]:
    """Everything that attaching may touch."""
    return {
        "implementation": model.config._attn_implementation,
        "functions": sorted(AttentionInterface._global_mapping),
        "masks": sorted(AttentionMaskInterface._global_mapping),
        "attributes": {
            name: sorted(key for key in vars(module) if not key.startswith("_"))
            for name, module in model.named_modules()
        },
        "buffers": {name: buffer.clone() for name, buffer in model.named_buffers()},
    }


@pytest.mark.parametrize("family", ["llama", "deepseek-v3", "llama-dynamic", "llama-longrope"])
def test_the_model_is_as_before(load_family, family):
    loaded = load_family(family)
    model, tokens = loaded.model, torch.arange(100).unsqueeze(0)
    with torch.inference_mode():
        logits = model(tokens[:, :20], use_cache=False).logits
    before = state(model)
    drive(loaded, [tokens[0, :70].tolist(), tokens[0, :9].tolist()], 3)
    after = state(model)
    buffers = before.pop("buffers")
    for name, buffer in after.pop("buffers").items():
        assert torch.equal(buffer, buffers[name])
    assert after == before
    with torch.inference_mode():
        assert torch.equal(model(tokens[:, :20], use_cache=False).logits, logits)


def test_undone_after_an_error(load_family):
    model = load_family("deepseek-v3").model
    before = state(model)["attributes"], model.config._attn_implementation
    with pytest.raises(ZeroDivisionError), attached(model):
        1 / 0  # noqa: B018
    assert (state(model)["attributes"], model.config._attn_implementation) == before


def test_two_models_may_be_attached_at_once(load_family):
    first, second = load_family("llama").model, load_family("qwen3").model
    with attached(first):
        name = first.config._attn_implementation
        with attached(second):
            assert second.config._attn_implementation != name
        assert name in AttentionInterface._global_mapping


def test_an_attached_model_runs_only_within_a_forward_context(load_family):
    model = load_family("llama").model
    with attached(model), pytest.raises(RuntimeError, match="ModelRunner"):
        model(torch.arange(4).unsqueeze(0))


def test_forward_contexts_do_not_nest():
    class Context:
        rope_groups = ()

        def attend(self, call):
            raise NotImplementedError

    outer = Context()
    with forward_context.entered(outer):
        with pytest.raises(RuntimeError, match="do not nest"), forward_context.entered(Context()):
            pytest.fail("entered")
        assert forward_context.current() is outer
    assert forward_context.current() is None
