import pytest

from headway.engine.activation import activation_peak
from headway.engine.config import ModelConfig
from headway.engine.loading import load


@pytest.fixture(scope="module")
def needle():
    return load(ModelConfig(device="cpu"))


def test_more_tokens_need_more_memory(needle):
    few, many = activation_peak(needle, 16, 0), activation_peak(needle, 4096, 0)
    hidden_states = 4096 * needle.model.config.hidden_size * needle.dtype.itemsize
    assert many > few + hidden_states


def test_context_costs_no_cache(needle):
    """The dry run must not allocate the pages of the context that it pretends to have."""
    pages = 65_000 * sum(spec.bytes_per_token(needle.dtype) for spec in needle.specs)
    assert 0 <= activation_peak(needle, 16, 65_000) < pages / 4
