"""store_kv: every token in its slot, everything else untouched."""

import pytest
import torch

from headway.kernels import dispatch
from headway.kernels.store_kv import store_kv

PAGES, PAGE = 9, 4


@pytest.fixture(params=["cpu", "reference"], autouse=True)
def _version(request, monkeypatch):
    monkeypatch.setattr(dispatch, "_REFERENCE", request.param == "reference")


def cache(layout, heads, dim, dtype):
    if layout == "HND":
        return torch.full((PAGES, heads, PAGE, dim), torch.nan, dtype=dtype).transpose(1, 2)
    return torch.full((PAGES, PAGE, heads, dim), torch.nan, dtype=dtype)


def strided(tokens, heads, dim, dtype):
    """As a fused projection leaves it: [T, H, D] views of a wider, transposed tensor."""
    return torch.randn(heads, tokens, dim + 3).to(dtype)[..., :dim].transpose(0, 1)


@pytest.mark.parametrize("tokens", [0, 1, PAGE - 1, PAGE, PAGE + 1, 3 * PAGE + 7])
@pytest.mark.parametrize("layout", ["NHD", "HND"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_scatter(tokens, layout, dtype):
    key, value = strided(tokens, 2, 24, dtype), strided(tokens, 2, 16, dtype)
    key_cache, value_cache = cache(layout, 2, 24, dtype), cache(layout, 2, 16, dtype)
    slots = torch.randperm(PAGES * PAGE)[:tokens]
    slots[::3] = -1
    store_kv(key, value, key_cache, value_cache, slots)
    for new, stored in ((key, key_cache), (value, value_cache)):
        expected = torch.full((PAGES * PAGE, *new.shape[1:]), torch.nan, dtype=dtype)
        for token, slot in enumerate(slots.tolist()):
            if slot >= 0:
                expected[slot] = new[token]
        torch.testing.assert_close(stored.reshape(expected.shape), expected, equal_nan=True, atol=0, rtol=0)


def test_strides_of_all():
    """Heads side by side, channels apart on one side or on both, every other slot of a longer list."""
    slots = torch.tensor([7, 0, 3, 0, -1, 0, 30, 0])[::2]
    wide = torch.randn(4, 2, 8, 2)
    for key in (wide[..., 0], wide[..., 0].contiguous()):
        for key_cache in (cache("NHD", 2, 8, torch.float32), cache("NHD", 2, 16, torch.float32)[..., ::2]):
            store_kv(key, key, key_cache, key_cache.clone(), slots)
            assert key_cache.reshape(-1, 2, 8)[[7, 3, 30]].equal(key[[0, 1, 3]])
            assert key_cache.isfinite().sum() == 3 * 2 * 8


def test_key_only():
    key, key_cache = strided(3, 1, 24, torch.float32), cache("NHD", 1, 24, torch.float32)
    store_kv(key, None, key_cache, None, torch.tensor([7, -5, 30]))
    flat = key_cache.flatten(0, 1)
    torch.testing.assert_close(flat[[7, 30]], key[[0, 2]])
    assert flat.isfinite().all(-1).sum() == 2


def test_every_slot_negative_changes_nothing():
    key, key_cache = strided(2, 1, 8, torch.float32), cache("NHD", 1, 8, torch.float32)
    store_kv(key, None, key_cache, None, torch.tensor([-1, -1]))
    assert key_cache.isnan().all()


@pytest.mark.parametrize(
    ("change", "names"),
    [
        ({"value": None}, "value"),
        ({"slot_mapping": torch.zeros(3, dtype=torch.int32)}, "slot_mapping"),
        ({"slot_mapping": torch.zeros(2, dtype=torch.int64)}, "key"),
        ({"key": torch.zeros(3, 2, 7)}, "key"),
        ({"key": torch.zeros(3, 2, 8, dtype=torch.float16)}, "key"),
        ({"value": torch.zeros(3, 1, 8)}, "value"),
        ({"key_cache": torch.zeros(36, 2, 8)}, "key_cache"),
        ({"value_cache": torch.zeros(5, 4, 2, 8)}, "value_cache"),
    ],
    ids=lambda value: value if isinstance(value, str) else "-".join(value),
)
def test_refuses(change, names):
    good = {
        "key": torch.zeros(3, 2, 8),
        "value": torch.zeros(3, 2, 8),
        "key_cache": torch.zeros(PAGES, PAGE, 2, 8),
        "value_cache": torch.zeros(PAGES, PAGE, 2, 8),
        "slot_mapping": torch.arange(3),
    }
    store_kv(**good)
    with pytest.raises(ValueError, match=names):
        store_kv(**{**good, **change})


def test_a_slot_beyond_the_cache_is_an_error_on_a_cpu():
    key = torch.zeros(1, 2, 8)
    with pytest.raises(IndexError):
        store_kv(key, None, torch.zeros(PAGES, PAGE, 2, 8), None, torch.tensor([PAGES * PAGE]))
