import pytest


@pytest.fixture(scope="session")
def gqa(load_family):
    """Two layers, four query heads over two KV heads of size 16, rotary embedding in halves."""
    return load_family("llama")
