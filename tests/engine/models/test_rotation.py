"""A layer's rotation turns its queries from one position to another, as the model itself would."""

import pytest
import torch

from headway.engine import forward_context
from headway.engine.forward_context import rows
from headway.engine.patch import attached

CONSTANT = ["llama", "llama-llama3", "llama-yarn", "stablelm", "glm4", "gemma3", "cohere2", "deepseek-v2"]


def queries(loaded, start: int) -> dict[int, torch.Tensor]:
    """Each layer's queries [T, Hq, D] of the same tokens from position `start` on."""
    found: dict[int, torch.Tensor] = {}

    class Recorder:
        rope_groups = ()

        def attend(self, call):
            found[call.layer_idx] = rows(call.query)
            latent = hasattr(call.module, "v_head_dim")
            width = call.module.v_head_dim if latent else call.value.shape[-1]
            return call.query.new_zeros(1, call.query.shape[2], call.query.shape[1], width)

    tokens = torch.arange(5).unsqueeze(0)
    with torch.inference_mode(), attached(loaded.model), forward_context.entered(Recorder()):
        loaded.model(input_ids=tokens, position_ids=tokens + start, use_cache=False)
    return found


@pytest.mark.parametrize("family", CONSTANT)
@pytest.mark.parametrize("by", [-37, 210])
def test_turning_moves_a_query(family, by, load_family):
    loaded = load_family(family)
    before, after = queries(loaded, 40), queries(loaded, 40 + by)
    for spec in loaded.specs:
        if spec.rope == "none":
            assert spec.rotation is None
            continue
        assert spec.rotation is not None
        turned = spec.rotation.turn(before[spec.layer_idx], torch.full((5,), by))
        torch.testing.assert_close(turned, after[spec.layer_idx], atol=2e-4, rtol=1e-4)
        assert not torch.allclose(before[spec.layer_idx], after[spec.layer_idx], atol=1e-2)


@pytest.mark.parametrize("family", ["llama-dynamic", "llama-longrope", "hunyuan", "gpt2"])
def test_no_constant_turn(family, load_family):
    assert [spec.rotation for spec in load_family(family).specs] == [None, None]
