import pytest
import torch
import torch.nn.functional as F

from headway.engine.needle.behind import attend_behind


@pytest.mark.parametrize(("seen", "own"), [(300, 50), (1, 1), (17, 130)])
def test_attention_behind_a_haystack_and_its_gradients_are_those_of_one_masked_attention(
    seen: int, own: int
) -> None:
    q, k, v = (torch.randn(1, heads, own, 32, requires_grad=True) for heads in (8, 2, 2))
    k_seen, v_seen = (torch.randn(1, 2, seen, 32, requires_grad=True) for _ in range(2))
    inputs = (q, k_seen, v_seen, k, v)
    causal = torch.ones(own, own, dtype=torch.bool).tril()
    got = attend_behind(*inputs, causal)
    mask = torch.cat((torch.ones(own, seen, dtype=torch.bool), causal), dim=1)
    keys, values = torch.cat((k_seen, k), dim=2), torch.cat((v_seen, v), dim=2)
    wanted = F.scaled_dot_product_attention(q, keys, values, mask, enable_gqa=True)
    torch.testing.assert_close(got, wanted)
    weight = torch.randn_like(got)
    for a, b in zip(
        torch.autograd.grad(got, inputs, weight), torch.autograd.grad(wanted, inputs, weight), strict=True
    ):
        torch.testing.assert_close(a, b)
