"""A blend lies between two checkpoints of one shape, and is nothing else."""

import pytest
import torch

from headway.engine.needle.blend import blend

OLD = {"a": torch.tensor([1.0, 2.0]), "b": torch.tensor([[4.0]])}
NEW = {"a": torch.tensor([3.0, -2.0]), "b": torch.tensor([[0.0]])}


@pytest.mark.parametrize(("share", "a", "b"), [(0.0, [1, 2], 4), (0.75, [2.5, -1], 1), (1.0, [3, -2], 0)])
def test_every_weight_is_a_share_of_the_way(share: float, a: list[float], b: float) -> None:
    state = blend(OLD, NEW, share)
    assert state["a"].tolist() == a
    assert state["b"].item() == b
    assert set(state) == set(OLD)


@pytest.mark.parametrize("other", [{"a": NEW["a"]}, {**NEW, "b": torch.zeros(2, 1)}])
def test_other_shapes_are_refused(other: dict[str, torch.Tensor]) -> None:
    with pytest.raises(ValueError, match="different shapes"):
        blend(OLD, other, 0.5)


@pytest.mark.parametrize("share", [-0.1, 1.1, float("nan")])
def test_shares_beyond_both_are_refused(share: float) -> None:
    with pytest.raises(ValueError, match="share"):
        blend(OLD, NEW, share)
