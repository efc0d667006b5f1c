"""Growing a checkpoint changes nothing of what it computes."""

import torch

from headway.engine.needle.export import shape_of
from headway.engine.needle.grow import grow
from headway.engine.needle.model import Needle, Shape


def test_a_grown_model_computes_the_same() -> None:
    small = Needle(Shape(vocab_size=50, hidden_size=64, intermediate_size=32, num_hidden_layers=3))
    state = grow(small.state_dict(), [0, 2], {})
    large = Needle(shape_of(state))
    large.load_state_dict(state)
    assert large.shape.num_hidden_layers == 5
    ids = torch.randint(50, (2, 40))
    positions = torch.arange(40).repeat(2, 1)
    torch.testing.assert_close(large(ids, positions), small(ids, positions), rtol=0, atol=0)


def test_sharpening_multiplies_the_logits_of_the_named_layers_only() -> None:
    small = Needle(Shape(vocab_size=50, hidden_size=64, intermediate_size=32, num_hidden_layers=2))
    state = grow(small.state_dict(), [1], {1: 1.5})
    norms = [state[f"layers.{layer}.self_attn.q_norm.weight"].mean().item() for layer in range(3)]
    assert norms == [1.0, 1.5, 1.5]
