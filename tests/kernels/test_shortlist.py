"""shortlist against its rule in plain Python, and both versions against each other."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from headway.kernels import dispatch
from headway.kernels.paged_attention import plan
from headway.kernels.shortlist import cpu, shortlist
from headway.kernels.unit_scores import unit_scores

PAGE = 16


@pytest.fixture(params=["cpu", "cpu threads", "reference"], autouse=True, scope="module")
def _version(request):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dispatch, "_REFERENCE", request.param == "reference")
        if request.param == "cpu threads":
            patch.setattr(cpu, "SHARED_NUMBERS", 0)
        yield


class Case:
    """Sequences over a shuffled pool whose other cells are NaN, with a random score for each unit."""

    def __init__(self, lengths: list[int], unit: int, seed: int, dtype: torch.dtype = torch.float32) -> None:
        torch.manual_seed(seed)
        counts = [-(-length // PAGE) for length in lengths]
        free = torch.randperm(sum(counts) + 2).tolist()
        self.tables = [[free.pop() for _ in range(count)] for count in counts]
        self.keys = [torch.randn(length, 2, 8).to(dtype) for length in lengths]
        self.cache = torch.full((sum(counts) + 2, PAGE, 2, 8), torch.nan, dtype=dtype)
        for table, keys in zip(self.tables, self.keys, strict=True):
            for token, key in enumerate(keys):
                self.cache[table[token // PAGE], token % PAGE] = key
        self.query = torch.randn(len(lengths), 6, 8).to(dtype)
        self.plan = plan([1] * len(lengths), lengths, self.tables, PAGE, "cpu")
        self.lengths, self.unit = lengths, unit
        self.scores = torch.full((len(lengths), 2, max(counts) * PAGE // unit), -torch.inf)
        for row, length in enumerate(lengths):
            self.scores[row, :, : -(-length // unit)] = torch.randn(2, -(-length // unit))

    def run(self, **told):
        return shortlist(self.query, self.scores.clone(), self.cache, self.plan, self.unit, **told)

    def expected(self, row: int, head: int, units: int, tokens: int, sinks: int, window: int, cap=None):
        """Tokens of one list, and the scores of all that were looked at."""
        length, unit = self.lengths[row], self.unit
        latest = length - window
        names = range(-(-length // unit))
        forced = [one * unit < sinks or (one + 1) * unit > latest for one in names]
        scores = self.scores[row, head].tolist()
        listed = sorted(sorted(names, key=lambda one: -math.inf if forced[one] else -scores[one])[:units])
        own = self.query[row].chunk(2)[head].double()
        exact = {}
        for token in (one * unit + j for one in listed for j in range(unit)):
            if token < length:
                logits = own @ self.keys[row][token, head].double() * 0.3
                exact[token] = float((logits if cap is None else cap * torch.tanh(logits / cap)).max())

        def rank(token: int) -> float:
            return -math.inf if token < sinks or token >= latest else -exact[token]

        return sorted(sorted(exact, key=rank)[:tokens]), exact


def lists(tokens: Tensor) -> list[list[list[int]]]:
    return [[[token for token in one if token >= 0] for one in row] for row in tokens.tolist()]


@settings(max_examples=60, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 90), min_size=1, max_size=4),
    unit=st.sampled_from([1, 4, 16]),
    units=st.integers(8, 30),
    tokens=st.integers(8, 40),
    sinks=st.integers(0, 5),
    window=st.integers(0, 6),
    cap=st.sampled_from([None, 1.5]),
    data=st.data(),
    seed=st.integers(0, 2**31),
)
def test_the_best_tokens_of_the_best_units(lengths, unit, units, tokens, sinks, window, cap, data, seed):
    case = Case(lengths, unit, seed)
    several = {"min_size": len(lengths), "max_size": len(lengths)}
    flags = data.draw(st.none() | st.lists(st.booleans(), **several), "active")
    limited = data.draw(st.booleans(), "limited")
    fewer_units = data.draw(st.lists(st.integers(7, units), **several)) if limited else [units] * len(lengths)
    fewer_tokens = (
        data.draw(st.lists(st.integers(0, tokens), **several)) if limited else [tokens] * len(lengths)
    )
    found = case.run(
        units=units, tokens=tokens, sink_size=sinks, window_size=window, scale=0.3, softcap=cap,
        unit_limits=torch.tensor(fewer_units) if limited else None,
        token_limits=torch.tensor(fewer_tokens) if limited else None,
        active=None if flags is None else torch.tensor(flags),
    )  # fmt: skip
    assert found.tokens.shape == found.places.shape == (len(lengths), 2, tokens)
    assert (found.tokens < 0).equal(found.places < 0)
    for row, both in enumerate(lists(found.tokens)):
        for head, got in enumerate(both):
            scores = found.scores[row, head]
            if flags is not None and not flags[row]:
                assert not got
                assert scores.isneginf().all()
                continue
            wanted, exact = case.expected(row, head, fewer_units[row], fewer_tokens[row], sinks, window, cap)
            assert got == wanted
            at = found.places[row, head, : len(got)].long()
            torch.testing.assert_close(
                scores[at].tolist(), [exact[token] for token in got], atol=1e-5, rtol=1e-5
            )
            assert scores.isfinite().sum() == len(exact)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_other_dtypes_are_scored_in_fp32(dtype):
    case = Case([70, 33], 4, seed=3, dtype=dtype)
    found = case.run(units=10, tokens=12, sink_size=2, window_size=3, scale=0.3)
    wanted = [[case.expected(row, head, 10, 12, 2, 3)[0] for head in range(2)] for row in range(2)]
    assert lists(found.tokens) == wanted


def test_everything_fits():
    """Room for all is the identity, whatever the scores are."""
    case = Case([50, 7], 4, seed=5)
    found = case.run(units=40, tokens=64, scale=0.3)
    assert lists(found.tokens) == [[list(range(50))] * 2, [list(range(7))] * 2]


@pytest.mark.parametrize("score", [0.0, torch.nan, -1e30])
def test_hostile_unit_scores(score):
    """Equal ones: the first units are listed; NaN: none but what must be read."""
    case = Case([80], 4, seed=1)
    case.scores[:] = score
    found = case.run(units=5, tokens=20, sink_size=4, window_size=4, scale=0.3)
    wanted = {0, 1, 2, 3, 76, 77, 78, 79} | (set() if math.isnan(score) else set(range(4, 16)))
    assert [set(one) for one in lists(found.tokens)[0]] == [wanted, wanted]


def test_a_row_does_not_depend_on_its_neighbours():
    case = Case([90, 17, 64], 4, seed=9)
    together = case.run(units=9, tokens=11, sink_size=1, window_size=5, scale=0.3)
    for row, length in enumerate(case.lengths):
        alone = shortlist(
            case.query[row : row + 1], case.scores[row : row + 1].clone(), case.cache,
            plan([1], [length], [case.tables[row]], PAGE, "cpu"), 4,
            units=9, tokens=11, sink_size=1, window_size=5, scale=0.3,
        )  # fmt: skip
        assert alone.tokens[0].equal(together.tokens[row])


def test_bounds_of_one_token_are_exact_scores():
    """Then a shortlist of k tokens is the exact top-k."""
    case = Case([90], 1, seed=4)
    exact = unit_scores(case.query, case.cache, case.plan, scale=0.3, reduce="max")
    case.scores = exact
    found = case.run(units=12, tokens=12, scale=0.3)
    assert lists(found.tokens)[0] == [sorted(one.topk(12).indices.tolist()) for one in exact[0]]


GOOD = Case([20, 20], 4, seed=0)


@pytest.mark.parametrize(
    ("change", "names"),
    [
        ({"unit_scores": GOOD.scores.double()}, "unit_scores"),
        ({"unit_scores": GOOD.scores[:, :1]}, "unit_scores"),
        ({"unit_scores": GOOD.scores.transpose(1, 2).contiguous().transpose(1, 2)}, "contiguous"),
        ({"unit": 3}, "unit"),
        ({"units": 0}, "units"),
        ({"tokens": 0}, "tokens"),
        ({"sink_size": -1}, "sink_size"),
        ({"window_size": -1}, "window_size"),
        ({"query": GOOD.query[:, :5]}, "query"),
        ({"key_cache": GOOD.cache.half()}, "key_cache"),
        ({"softcap": 0.0}, "softcap"),
        ({"active": torch.ones(2)}, "active"),
        ({"unit_limits": torch.ones(3, dtype=torch.int64)}, "unit_limits"),
        ({"token_limits": torch.ones(2)}, "token_limits"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_refuses(change, names):
    given = {
        "query": GOOD.query, "unit_scores": GOOD.scores.clone(), "key_cache": GOOD.cache, "plan": GOOD.plan,
        "unit": 4, "units": 4, "tokens": 4,
    }  # fmt: skip
    shortlist(**given)
    with pytest.raises(ValueError, match=names):
        shortlist(**{**given, **change})
