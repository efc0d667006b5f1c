"""Long chunks with PyTorch's CPU flash kernel in the library's place, and the choice of a library."""

import pytest
import torch

from headway.kernels.paged_attention import gpu_backends, gpu_dense

SINKS = torch.tensor([0.5, -1.0, 2.0, 0.0])


def on_cpu(query, key, value, scale, causal):
    group_size = query.shape[1] // key.shape[1]
    key, value = (x.repeat_interleave(group_size, 1) for x in (key, value))
    op = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default
    return op(query, key, value, 0.0, causal, scale=scale)


def attend(case, backend=on_cpu, sinks=None):
    out = torch.empty_like(case.query)
    lse = torch.empty(case.query.shape[:2])
    start = 0
    for b, q_len in enumerate(case.q_lens):
        rows = slice(start, start := start + q_len)
        gpu_dense.attend_chunk(
            backend, case.query[rows], case.key_cache, case.value_cache, case.plan, b, 0.2, sinks,
            out[rows], lse[rows],
        )  # fmt: skip
    return out, lse


def check(case, sinks=None):
    out, lse = attend(case, sinks=sinks)
    expected, expected_lse = case.oracle(0.2, sinks=sinks)
    torch.testing.assert_close(out.double(), expected, atol=2e-5, rtol=2e-4)
    torch.testing.assert_close(lse.double(), expected_lse, atol=2e-5, rtol=2e-4)


@pytest.fixture
def small_buckets(monkeypatch):
    monkeypatch.setattr(gpu_dense, "BUCKET", 24)
    monkeypatch.setattr(gpu_dense, "TILE", 48)


@pytest.mark.parametrize("page_size", [1, 7, 8, 16, 64])
@pytest.mark.parametrize("sinks", [None, SINKS], ids=["plain", "sinks"])
@pytest.mark.usefixtures("small_buckets")
def test_equals_the_oracle(batch, page_size, sinks):
    """Chunks that begin or end on a bucket's edge and beside it, behind none to several tiles of keys."""
    check(batch([(24, 24), (24, 48), (30, 31), (25, 97), (1, 121), (40, 169)], page_size=page_size), sinks)


@pytest.mark.usefixtures("small_buckets")
def test_the_library_meets_few_shapes(batch):
    """Lengths are whole buckets, keys before the chunk at most one tile at a time."""
    shapes = set()

    def noting(query, key, value, scale, causal):
        shapes.add((query.shape[2], key.shape[2]))
        assert not causal or query.shape[2] == key.shape[2]
        return on_cpu(query, key, value, scale, causal)

    attend(batch([(30 + i, 110 + 5 * i) for i in range(12)]), noting)
    assert all(size % gpu_dense.BUCKET == 0 for shape in shapes for size in shape)
    assert max(keys for _, keys in shapes) <= 96
    assert len(shapes) < 10


def test_long_chunks_without_a_window_that_hides_keys(batch):
    plan = batch([(1, 1030), (1024, 1030), (1023, 1040)], heads=(1, 1), dim=2).plan
    assert gpu_dense.long_chunks(plan, None) == [1]
    assert gpu_dense.long_chunks(plan, 1030) == [1]
    assert gpu_dense.long_chunks(plan, 1029) == []


def raising(*_):
    raise RuntimeError("not for this head size")


def wrong(query, key, value, scale, causal):
    out, lse = on_cpu(query, key, value, scale, causal)
    return out, lse / 0.6931471805599453  # in base 2


def seeing_all(query, key, value, scale, causal):  # noqa: ARG001
    return on_cpu(query, key, value, scale, False)


def ungrouped(query, key, value, scale, causal):
    if query.shape[1] != key.shape[1]:
        raise RuntimeError("as many key heads as query heads")
    return on_cpu(query, key, value, scale, causal)


def choose(*backends):
    return gpu_backends.chosen(torch.device("cpu"), torch.float32, 16, backends)


def test_the_first_right_library_is_chosen():
    assert choose(raising, wrong, seeing_all, on_cpu, ungrouped) is on_cpu


def test_no_right_library_leaves_it_to_triton():
    assert choose(raising, wrong) is None
    assert choose() is None


def test_a_library_is_tried_once():
    tried = []

    def counting(*arguments):
        tried.append(1)
        return raising(*arguments)

    assert choose(counting) is choose(counting) is None
    assert len(tried) == 1


def test_one_head_for_every_query_head_where_a_library_needs_it():
    assert choose(ungrouped) is None
    expanding = gpu_backends.expanding(ungrouped)
    assert choose(expanding) is expanding


def test_no_library_of_a_gpu_is_chosen_for_a_cpu():
    assert choose(*gpu_backends.BACKENDS) is None
