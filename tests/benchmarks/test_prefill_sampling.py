"""What a whole prompt costs by some of its chunks."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.prefill_sampling import by_square, causal_pairs, sampled, total

Chunks = list[tuple[int, int]]


@st.composite
def layouts(draw: st.DrawFn) -> Chunks:
    """Chunks of one length but the last, which may be shorter."""
    length = draw(st.integers(1, 300))
    prompt = draw(st.integers(1, 60 * length))
    return [(start, min(length, prompt - start)) for start in range(0, prompt, length)]


def sparse(chunks: Chunks, dense_below: int, dense_tail: int) -> dict[int, float]:
    """Seconds of each chunk: dense up to `dense_below`, then a constant rate, then the dense tail."""
    costs = {}
    for i, (start, length) in enumerate(chunks):
        dense = min(max(dense_below - start, 0), length)
        costs[i] = 3.0 * length + 0.02 * causal_pairs(start, dense) + 7.0 * (length - dense)
    costs[len(chunks) - 1] += 0.02 * dense_tail * chunks[-1][0]
    return costs


@given(layouts(), st.integers(2, 9))
def test_dense_is_whole_by_any_sample(chunks: Chunks, count: int) -> None:
    costs = {i: 0.5 * length + 0.02 * causal_pairs(start, length) for i, (start, length) in enumerate(chunks)}
    known = {i: costs[i] for i in sampled(chunks, count, None)}
    assert total(chunks, known) == pytest.approx(sum(costs.values()))
    assert total(chunks, costs) == pytest.approx(sum(costs.values()))


@given(layouts(), st.integers(2, 9), st.integers(0, 6), st.integers(0, 64))
def test_jumps_do_not_spread(chunks: Chunks, count: int, dense_chunks: int, dense_tail: int) -> None:
    edge = dense_chunks * chunks[0][1]
    costs = sparse(chunks, edge, dense_tail)
    known = {i: costs[i] for i in sampled(chunks, count, edge)}
    assert total(chunks, known) == pytest.approx(sum(costs.values()))


@given(layouts(), st.integers(2, 9), st.integers(0, 20_000))
def test_sample_holds_both_sides_of_every_jump(chunks: Chunks, count: int, dense_below: int) -> None:
    known = sampled(chunks, count, dense_below)
    assert known == sorted(set(known))
    assert {0, len(chunks) - 1} <= set(known) <= set(range(len(chunks)))
    for i, (start, length) in enumerate(chunks):
        if start < dense_below <= start + length and i + 1 < len(chunks):
            assert {i, i + 1} <= set(known)


def test_causal_pairs_counts_the_triangle() -> None:
    assert [causal_pairs(start, 3) for start in (0, 10)] == [1 + 2 + 3, 11 + 12 + 13]


def test_by_square_is_the_measured_time_or_the_parabola() -> None:
    def parabola(n: int) -> float:
        return 2e-4 * n + 3e-9 * n * n

    assert by_square(1000, {1000: 7.0}) == 7.0
    assert by_square(131_072, {n: parabola(n) for n in (16_384, 32_768)}) == pytest.approx(parabola(131_072))


@given(st.floats(0.01, 10.0), st.floats(0.01, 10.0))
def test_by_square_of_noise_stays_between_line_and_square(short: float, long: float) -> None:
    whole = by_square(8000, {1000: short, 2000: long})
    assert 4 * long <= whole * (1 + 1e-9)
    assert whole <= 16 * long * (1 + 1e-9)
