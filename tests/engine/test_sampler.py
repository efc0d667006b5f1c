"""The sampler against Hugging Face's logits processors, against chance, and against its neighbours."""

import math
from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.generation import logits_process as hf

from headway.engine.draw import CANDIDATES, ranked, uniform
from headway.engine.errors import RequestFailed
from headway.engine.messages import SamplingParams, Submit
from headway.engine.request import Sequence
from headway.engine.sampler import Sample, Sampler

VOCAB = 40


def sequence(prompt: list[int], output: list[int] | None = None, **params: object) -> Sequence:
    submit = Submit(request_id="r", prompt=prompt, sampling=SamplingParams(**params))
    return Sequence(submit, prompt + (output or []), max_tokens=100, rope_length=200)


def rows(count: int, vocab: int = VOCAB, seed: int = 0) -> torch.Tensor:
    """Logits without ties."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, vocab, generator=generator) * 3


def tokens(sampler: Sampler, logits: torch.Tensor, sequences: list[Sequence]) -> list[int]:
    samples = sampler.sample(logits.clone(), sequences)
    assert all(isinstance(sample, Sample) for sample in samples)
    return [sample.token for sample in samples]


def support(logits: torch.Tensor, draws: int = 400, **params: object) -> Counter[int]:
    """How often each token comes out of one row of logits, over many seeds."""
    batch = [sequence([1], seed=seed, **params) for seed in range(draws)]
    return Counter(tokens(Sampler(VOCAB), logits.expand(draws, -1), batch))


finite = st.floats(-20, 20, width=32)
token_lists = st.lists(st.integers(0, VOCAB - 1), min_size=1, max_size=30)


@given(
    prompt=token_lists,
    output=token_lists,
    repetition=st.floats(0.5, 2.0),
    presence=st.floats(-2, 2),
    frequency=st.floats(-2, 2),
    bias=st.dictionaries(st.integers(0, VOCAB - 1), st.floats(-10, 10), max_size=5),
    seed=st.integers(0, 1000),
)
@settings(max_examples=150, deadline=None)
def test_adjusted_logits_equal_the_definition(prompt, output, repetition, presence, frequency, bias, seed):
    logits = rows(1, seed=seed)
    expected = logits.clone()
    for token, value in bias.items():
        expected[0, token] += value
    expected = hf.RepetitionPenaltyLogitsProcessor(repetition)(torch.tensor([prompt + output]), expected)
    for token, count in Counter(output).items():
        expected[0, token] -= frequency * count + presence
    request = sequence(
        prompt,
        output,
        temperature=0.0,
        repetition_penalty=repetition,
        presence_penalty=presence,
        frequency_penalty=frequency,
        logit_bias=bias,
    )
    Sampler(VOCAB).sample(logits, [request])
    torch.testing.assert_close(logits, expected)


def test_penalty_counts_grow_with_the_sequence():
    """State built token by token equals state built at once, also across a preemption."""
    params = {
        "repetition_penalty": 1.3,
        "frequency_penalty": 0.5,
        "presence_penalty": 0.2,
        "temperature": 0.0,
    }
    grown, sampler = sequence([3, 4], **params), Sampler(VOCAB)
    for step in range(20):
        logits = rows(1, seed=step % 2)
        fresh = sequence([3, 4], grown.tokens[2:], **params)
        expected = tokens(Sampler(VOCAB), logits, [fresh])
        assert tokens(sampler, logits, [grown]) == expected
        grown.tokens += expected
    assert len(set(grown.tokens[2:])) > 5


def test_a_released_slot_starts_clean():
    sampler, logits = Sampler(VOCAB), rows(1)
    params = {"repetition_penalty": 2.0, "frequency_penalty": 2.0, "temperature": 0.0}
    old = sequence(list(range(VOCAB)), list(range(VOCAB)), **params)
    tokens(sampler, logits, [old])
    sampler.release(old)
    new = sequence([0], **params)
    assert tokens(sampler, logits, [new]) == tokens(Sampler(VOCAB), logits, [sequence([0], **params)])


@given(
    temperature=st.floats(0.3, 2.0),
    top_k=st.integers(0, VOCAB + 5),
    top_p=st.floats(0.05, 1.0),
    min_p=st.floats(0.0, 0.5),
    seed=st.integers(0, 1000),
)
@settings(max_examples=60, deadline=None)
def test_kept_tokens_equal_hugging_faces(temperature, top_k, top_p, min_p, seed):
    logits = rows(1, seed=seed)
    expected = hf.TemperatureLogitsWarper(temperature)(None, logits) if temperature != 1.0 else logits
    for warper in (
        hf.TopKLogitsWarper(top_k) if top_k else None,
        hf.TopPLogitsWarper(top_p) if top_p < 1.0 else None,
        hf.MinPLogitsWarper(min_p) if min_p else None,
    ):
        expected = warper(None, expected) if warper else expected
    probabilities = expected.softmax(-1)[0]
    counts = support(logits, temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p)
    kept = {token for token, p in enumerate(probabilities.tolist()) if p > 0}
    assert set(counts) <= kept
    assert {token for token in kept if probabilities[token] > 0.05} <= set(counts)


@pytest.mark.parametrize(
    "params", [{}, {"temperature": 0.5}, {"top_k": 7}, {"top_p": 0.8}, {"min_p": 0.1}], ids=str
)
def test_tokens_come_as_often_as_they_should(params):
    """Pearson's chi-square over fixed seeds; 5 standard deviations above its mean is far out."""
    logits, draws = rows(1) / 3, 20_000
    kept = set(support(logits, draws, **params))
    scaled = logits[0] / params.get("temperature", 1.0)
    outside = torch.tensor([token not in kept for token in range(VOCAB)])
    expected = scaled.masked_fill(outside, -math.inf).softmax(-1) * draws
    counts = support(logits, draws, **params)
    chi_square = sum((counts[token] - expected[token].item()) ** 2 / expected[token].item() for token in kept)
    freedom = len(kept) - 1
    assert freedom > 3
    assert chi_square < freedom + 5 * math.sqrt(2 * freedom)


MIXED = [
    {"temperature": 0.0},
    {"seed": 1},
    {"seed": 1, "top_p": 0.9},
    {"seed": 2, "top_k": 5, "repetition_penalty": 1.2},
    {"seed": 3, "min_p": 0.2, "logit_bias": {3: 4.0}},
    {"seed": 4, "frequency_penalty": 1.0, "logprobs": 3},
    {"seed": 5, "top_p": 0.99, "temperature": 2.0, "min_tokens": 9, "stop_token_ids": (7,)},
    {"temperature": 0.0, "presence_penalty": 2.0, "logprobs": 0},
]


@given(order=st.permutations(range(len(MIXED))), size=st.integers(1, len(MIXED)))
@settings(max_examples=40, deadline=None)
def test_neighbours_do_not_matter(order, size):
    logits = rows(len(MIXED))
    alone = [
        Sampler(VOCAB, (5,)).sample(logits[[row]], [sequence([1, 2], [2, 3], **MIXED[row])])[0]
        for row in order[:size]
    ]
    batch = [sequence([1, 2], [2, 3], **MIXED[row]) for row in order[:size]]
    assert Sampler(VOCAB, (5,)).sample(logits[order[:size]], batch) == alone


def test_a_seed_repeats_and_the_next_token_draws_anew():
    logits = torch.zeros(1, VOCAB)
    first = [tokens(Sampler(VOCAB), logits, [sequence([1], [0] * i, seed=9)])[0] for i in range(50)]
    again = [tokens(Sampler(VOCAB), logits, [sequence([2, 3], [4] * i, seed=9)])[0] for i in range(50)]
    assert first == again
    assert len(set(first)) > 20


def test_without_a_seed_draws_differ():
    logits = torch.zeros(64, VOCAB)
    assert len(set(tokens(Sampler(VOCAB), logits, [sequence([1]) for _ in range(64)]))) > 10


@given(st.integers(-(2**63), 2**64), st.integers(0, 10**6))
def test_uniform_lies_in_the_half_open_interval(seed, index):
    assert 0.0 <= uniform(seed, index) < 1.0


@given(st.lists(st.lists(st.sampled_from([-math.inf, -2.5, -0.0, 0.0, 1.0, 3.5]), min_size=9, max_size=9)))
def test_ranking_is_by_value_then_by_id(values):
    logits = torch.tensor(values).reshape(-1, 9)
    expected = [sorted(range(9), key=lambda i, row=row: (-row[i], i)) for row in values]
    assert ranked(logits, 9).tolist() == expected
    assert ranked(logits, 4).tolist() == [row[:4] for row in expected]


@pytest.mark.parametrize(
    "params", [{"temperature": 0.0}, {"top_k": 1}, {"top_p": 1e-9}, {"min_p": 1.0, "top_k": 1}]
)
def test_ties_go_to_the_lowest_id(params):
    logits = torch.zeros(1, VOCAB)
    logits[0, [11, 23, 30]] = 5.0
    assert support(logits, 20, **params) == {11: 20}


def test_a_flat_row_keeps_more_than_the_first_candidates():
    vocab = 4 * CANDIDATES
    batch = [sequence([1], seed=seed, top_p=0.9) for seed in range(300)]
    batch += [sequence([1], seed=seed, top_p=0.9, top_k=2 * CANDIDATES) for seed in range(300)]
    batch += [sequence([1], seed=seed, top_k=2) for seed in range(10)]
    drawn = tokens(Sampler(vocab), torch.zeros(len(batch), vocab), batch)
    assert 0.85 * vocab < max(drawn[:300]) < math.ceil(0.9 * vocab)
    assert 1.7 * CANDIDATES < max(drawn[300:600]) < math.ceil(1.8 * CANDIDATES)
    assert set(drawn[600:]) == {0, 1}


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ([math.nan] + [0.0] * (VOCAB - 1), "not finite"),
        ([math.inf] + [0.0] * (VOCAB - 1), "not finite"),
        ([-math.inf] * VOCAB, "ruled out"),
    ],
)
@pytest.mark.parametrize("params", MIXED, ids=str)
def test_a_broken_row_fails_alone(row, reason, params):
    logits = torch.stack([rows(1)[0], torch.tensor(row), rows(1)[0]])
    batch = [sequence([1], **params) for _ in range(3)]
    alone = Sampler(VOCAB).sample(rows(1), [sequence([1], **params)])[0]
    first, broken, last = Sampler(VOCAB).sample(logits, batch)
    assert isinstance(broken, RequestFailed)
    assert reason in str(broken)
    assert first == last == alone


def test_a_row_whose_every_token_is_barred_fails():
    sampler = Sampler(2, eos_token_ids=(0,))
    [result] = sampler.sample(torch.zeros(1, 2), [sequence([1], min_tokens=1, stop_token_ids=(1,))])
    assert isinstance(result, RequestFailed)


def test_min_tokens_bars_eos_and_stop_tokens_until_then():
    logits = torch.zeros(1, VOCAB)
    logits[0, [4, 6, 8]] = torch.tensor([9.0, 8.0, 7.0])
    sampler = Sampler(VOCAB, eos_token_ids=[4])
    params = {"temperature": 0.0, "min_tokens": 2, "stop_token_ids": (6,)}
    drawn = [tokens(sampler, logits, [sequence([1], [8] * done, **params)])[0] for done in range(4)]
    assert drawn == [8, 8, 4, 4]


def test_nearly_zero_temperature_is_greedy():
    logits = rows(1) * 1e4
    for temperature in (0.0, 1e-300, 1e-6):
        assert support(logits, 5, temperature=temperature) == {int(logits.argmax()): 5}


@given(st.integers(0, 500), st.integers(0, VOCAB), st.sampled_from([0.0, 1.0]))
@settings(deadline=None)
def test_logprobs_are_the_models_own(seed, top, temperature):
    logits = rows(1, seed=seed)
    params = {"logit_bias": {2: 50.0}, "repetition_penalty": 1.5, "top_k": 3, "seed": seed}
    request = sequence([1], temperature=temperature, logprobs=top, **params)
    [sample] = Sampler(VOCAB).sample(logits.clone(), [request])
    expected = logits.log_softmax(-1)[0]
    assert sample.logprob.logprob == pytest.approx(expected[sample.token].item(), abs=1e-5)
    assert [token for token, _ in sample.logprob.top] == expected.argsort(descending=True)[:top].tolist()
    assert [value for _, value in sample.logprob.top] == pytest.approx(
        expected.sort(descending=True).values[:top].tolist(), abs=1e-5
    )


@given(st.lists(finite, min_size=VOCAB, max_size=VOCAB))
@settings(deadline=None)
def test_the_greedy_token_is_the_top_entry(values):
    request = sequence([1], temperature=0.0, logprobs=2)
    [sample] = Sampler(VOCAB).sample(torch.tensor([values]), [request])
    assert sample.logprob.top[0] == (sample.token, sample.logprob.logprob)


def test_prompt_scores_equal_log_softmax():
    logits, ids = rows(5), torch.tensor([0, 3, 3, 39, 7])
    scores = Sampler(VOCAB).score(logits, ids, top=2)
    expected = logits.log_softmax(-1)
    assert [s.logprob for s in scores] == pytest.approx(expected[torch.arange(5), ids].tolist(), abs=1e-5)
    assert [[token for token, _ in s.top] for s in scores] == expected.topk(2).indices.tolist()


def test_prompt_scores_of_a_broken_row_fail():
    logits = rows(2)
    logits[1, 0] = math.nan
    with pytest.raises(RequestFailed, match="not finite"):
        Sampler(VOCAB).score(logits, torch.tensor([1, 2]), top=0)


def test_a_real_vocabulary_in_a_mixed_batch():
    vocab = 151_936
    logits = rows(len(MIXED), vocab)
    batch = [sequence([1, 2], [2, 3], **params) for params in MIXED]
    samples = Sampler(vocab, (5,)).sample(logits.clone(), batch)
    assert all(0 <= sample.token < vocab for sample in samples)
    assert samples[0].token == int(logits[0].argmax())
