"""Random paged batches, an oracle that shares no code with the kernels, and poisoned memory."""

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from headway.kernels.paged_attention import AttentionPlan, plan

from .scored_group import ScoredGroup, make_group

if os.environ.get("TRITON_INTERPRET") != "1":
    collect_ignore = ["interpreted"]  # run by test_interpreter.py, in a process that interprets Triton


@dataclass
class Batch:
    """A paged batch and, beside it, the same keys and values as plain tensors per sequence."""

    query: Tensor
    key_cache: Tensor
    value_cache: Tensor
    plan: AttentionPlan
    keys: list[Tensor]  # [kv_len, Hkv, Dk]
    values: list[Tensor]
    q_lens: list[int]

    def oracle(
        self,
        scale: float,
        window: int | None = None,
        softcap: float | None = None,
        sinks: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """One query and one head at a time, in fp64, over the plain tensors."""
        outs, lses = [], []
        token = 0
        for q_len, key, value in zip(self.q_lens, self.keys, self.values, strict=True):
            for i in range(q_len):
                stop = len(key) - q_len + i + 1
                start = 0 if window is None else max(0, stop - window)
                for head in range(self.query.shape[1]):
                    kv_head = head // (self.query.shape[1] // key.shape[1])
                    logits = key[start:stop, kv_head].double() @ self.query[token, head].double() * scale
                    if softcap is not None:
                        logits = softcap * torch.tanh(logits / softcap)
                    weight = torch.exp(logits)
                    total = weight.sum() + (0 if sinks is None else torch.exp(sinks[head].double()))
                    outs.append((weight / total) @ value[start:stop, kv_head].double())
                    lses.append(torch.log(total))
                token += 1
        shape = self.query.shape[:2]
        return torch.stack(outs).view(*shape, -1), torch.stack(lses).view(shape)

    def check(
        self, run: Callable[..., tuple[Tensor, Tensor]], scale: float = 0.2, atol: float = 2e-5, **kind: Any
    ) -> None:
        expected, expected_lse = self.oracle(scale, **kind)
        out, lse = run(self.query, self.key_cache, self.value_cache, self.plan, scale=scale, **kind)
        assert out.dtype == self.query.dtype
        assert lse.dtype == torch.float32
        torch.testing.assert_close(out.double(), expected, atol=atol, rtol=10 * atol)
        torch.testing.assert_close(lse.double(), expected_lse, atol=atol, rtol=10 * atol)


def make_batch(
    lens: Sequence[tuple[int, int]],
    heads: tuple[int, int] = (4, 2),
    dim: int = 32,
    value_dim: int | None = None,
    page_size: int = 16,
    pages: str = "shuffled",
    layout: str = "NHD",
    dtype: torch.dtype = torch.float32,
    strided_query: bool = False,
    latent: bool = False,
) -> Batch:
    """A random batch; cells of the cache that hold no token are NaN.

    lens: (q_len, kv_len) per sequence; pages: shuffled, contiguous or two-runs;
    latent: the value cache is a view of the key cache's first `value_dim` columns.
    """
    num_heads, num_kv_heads = heads
    value_dim = value_dim or dim
    counts = [-(-kv_len // page_size) for _, kv_len in lens]
    num_pages = sum(counts) + 3
    free = torch.randperm(num_pages).tolist() if pages == "shuffled" else list(range(1, num_pages))
    if pages == "two-runs":  # each sequence: its second half lies before its first
        taken, free = free, []
        for count in counts:
            own, taken = taken[:count], taken[count:]
            free += own[count // 2 :] + own[: count // 2]
    tables = []
    for count in counts:
        tables.append(free[:count])
        free = free[count:]

    def cache(width: int) -> Tensor:
        if layout == "HND":
            return torch.full((num_pages, num_kv_heads, page_size, width), torch.nan, dtype=dtype).transpose(
                1, 2
            )
        return torch.full((num_pages, page_size, num_kv_heads, width), torch.nan, dtype=dtype)

    key_cache = cache(dim)
    value_cache = key_cache[..., :value_dim] if latent else cache(value_dim)
    keys, values = [], []
    for (_, kv_len), table in zip(lens, tables, strict=True):
        key = torch.randn(kv_len, num_kv_heads, dim).to(dtype)
        value = key[..., :value_dim] if latent else torch.randn(kv_len, num_kv_heads, value_dim).to(dtype)
        for position in range(kv_len):
            at = table[position // page_size], position % page_size
            key_cache[at] = key[position]
            value_cache[at] = value[position]
        keys.append(key)
        values.append(value)
    tokens = sum(q_len for q_len, _ in lens)
    query = torch.randn(tokens, num_heads, dim).to(dtype)
    if strided_query:  # as [1, Hq, T, D] transposed back, with room between the heads
        wide = torch.full((num_heads, tokens, dim + 8), torch.nan, dtype=dtype)
        wide[..., :dim] = query.transpose(0, 1)
        query = wide[..., :dim].transpose(0, 1)
    q_lens, kv_lens = [list(column) for column in zip(*lens, strict=True)]
    return Batch(
        query, key_cache, value_cache, plan(q_lens, kv_lens, tables, page_size, "cpu"), keys, values, q_lens
    )


@pytest.fixture
def batch() -> Callable[..., Batch]:
    return make_batch


@pytest.fixture
def scored_group() -> Callable[..., ScoredGroup]:
    return make_group


@pytest.fixture(autouse=True)
def _poisoned_empty(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch.empty returns NaN: an output cell that nobody wrote fails the comparison."""
    empty = torch.empty

    def poisoned(*args: Any, **kwargs: Any) -> Tensor:
        made = empty(*args, **kwargs)
        return made.fill_(torch.nan) if made.is_floating_point() else made

    monkeypatch.setattr(torch, "empty", poisoned)


@pytest.fixture(autouse=True)
def _fresh_seed() -> None:
    """New input in every run; pytest shows the seed of a test that fails."""
    seed = int(os.environ.get("HEADWAY_TEST_SEED", int.from_bytes(os.urandom(4), "little")))
    print(f"HEADWAY_TEST_SEED={seed}")
    torch.manual_seed(seed)


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(params=[1, 2, 3])
def threads(request: pytest.FixtureRequest, _one_thread: None) -> int:
    """So many threads of PyTorch, for one test."""
    count: int = request.param
    torch.set_num_threads(count)
    return count
