import pytest

from headway.engine.activation import activation_peak
from headway.engine.config import ModelConfig
from headway.engine.loading import load
from headway.engine.methods.kind import PREFILL


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


@pytest.mark.parametrize("name", [name for name in PREFILL.names() if name != "dense"])
def test_the_dry_run_reads_as_the_method_does(needle, name, monkeypatch):
    method = PREFILL.make(PREFILL.parse({"method": name, "dense_below": 0}))
    attended = []

    def watched(query, chunk):
        attended.append(len(query))
        return type(method).attend(method, query, chunk)

    monkeypatch.setattr(method, "attend", watched)
    activation_peak(needle, 512, 2000, prefill=method)
    assert attended == [512] * (len(needle.specs) - method.settings.dense_layers)
