"""Dividing the device's memory, and what is said when it does not suffice."""

from dataclasses import replace
from pathlib import Path

import psutil
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from headway.engine.config import EngineConfig
from headway.engine.config_section import parse
from headway.engine.device_memory import device_memory
from headway.engine.errors import ConfigError
from headway.engine.memory_plan import GIB, Needs, context_limit, divide
from headway.engine.streaming_pages import StreamingNeeds

MIB = 2**20
NEEDS = Needs(
    weights=GIB,
    page=4 * MIB,
    sidecars=0,
    activations=512 * MIB,
    logits=64 * MIB,
    states=0,
    chunk=2048,
    chunk_context=4096,
)


def config(**sections: dict[str, object]) -> EngineConfig:
    return parse(EngineConfig, sections)


def test_pages_take_the_given_share_of_what_is_left() -> None:
    plan = divide(NEEDS, 16 * GIB, 10 * GIB, 131_072, config(cache={"memory_fraction": 0.5}))
    assert plan.num_pages == (5 * GIB - 576 * MIB) // (4 * MIB)
    assert plan.max_context == plan.num_pages * 64


def test_pages_take_the_memory_that_is_given() -> None:
    plan = divide(NEEDS, 16 * GIB, 10 * GIB, 4096, config(cache={"memory_gib": 2}))
    assert plan.num_pages == 512
    assert plan.max_context == 4096


def test_the_plan_says_what_fits() -> None:
    text = str(divide(NEEDS, 16 * GIB, 10 * GIB, 131_072, config(cache={"memory_gib": 4})))
    assert "longest prompt that fits: 65535 tokens, by the memory for KV pages" in text
    assert "documents of 32k tokens held at once: 2" in text
    assert "4 GiB: 1024 pages of 64 tokens, 64 KiB a token" in text
    assert "512 MiB, measured: 2048 tokens over 4096 cached ones" in text


@pytest.mark.parametrize(
    ("free", "sections", "advice"),
    [
        (GIB, {"cache": {"memory_fraction": 0.1}}, ["memory_fraction", "scheduler.max_step_tokens"]),
        (600 * MIB, {"cache": {"memory_gib": 0.5}}, ["cache.memory_gib is 0.5", "24 MiB", "max_step_tokens"]),
        (GIB, {"cache": {"memory_gib": 0.001}}, ["raise cache.memory_gib", "cache.page_size"]),
        (
            GIB,
            {"cache": {"memory_gib": 0.25}, "model": {"max_context": 8192}},
            ["max_context is 8192", "4096"],
        ),
    ],
)
def test_too_little_memory_is_refused_with_what_to_change(
    free: int, sections: dict[str, dict[str, object]], advice: list[str]
) -> None:
    with pytest.raises(ConfigError) as refusal:
        divide(NEEDS, 16 * GIB, free, 131_072, config(**sections))
    for part in advice:
        assert part in str(refusal.value)


def test_a_context_beyond_the_model_is_refused() -> None:
    assert context_limit(None, 4096) == 4096
    assert context_limit(1024, 4096) == 1024
    with pytest.raises(ConfigError, match="made for 4096 tokens"):
        context_limit(4097, 4096)


def test_a_containers_limit_counts(tmp_path: Path) -> None:
    (tmp_path / "memory.max").write_text(f"{64 * MIB}\n")
    (tmp_path / "memory.current").write_text(f"{24 * MIB}\n")
    (tmp_path / "memory.stat").write_text(f"anon 1\ninactive_file {8 * MIB}\nslab 3\n")
    assert device_memory(torch.device("cpu"), tmp_path) == (64 * MIB, 48 * MIB)


@pytest.mark.parametrize("content", [None, "max\n"])
def test_without_a_limit_the_machine_counts(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "memory.max").write_text(content)
    total, free = device_memory(torch.device("cpu"), tmp_path)
    assert total == psutil.virtual_memory().total
    assert 0 < free <= total


def test_what_is_remembered_of_requests_is_no_room_for_pages() -> None:
    wanted = config(cache={"memory_fraction": 0.5})
    plan = divide(replace(NEEDS, states=GIB), 16 * GIB, 10 * GIB, 131_072, wanted)
    assert plan.num_pages == divide(NEEDS, 16 * GIB, 10 * GIB, 131_072, wanted).num_pages - 256
    assert "states        1 GiB: what decode methods remember of requests" in str(plan)
    with pytest.raises(ConfigError, match=r"beside .* only 0 bytes .* scheduler\.max_running"):
        divide(replace(NEEDS, states=10 * GIB), 16 * GIB, 10 * GIB, 4096, config(cache={"memory_gib": 1}))


def test_the_plan_says_what_dropping_gains() -> None:
    streaming = StreamingNeeds(page=3 * MIB, most=20, least=5, document=512, prompts=4, sequences=64)
    needs = replace(NEEDS, page=MIB, streaming=streaming)
    plan = divide(needs, 16 * GIB, 10 * GIB, 10**6, config(cache={"memory_gib": 4}))
    more = plan.num_pages + 1
    held = plan.num_pages + 3 * (plan.streaming_pages + 1)  # one is void
    assert held <= 4096 < more + 3 * (streaming.pages(more) + 1)
    assert plan.streaming_pages == 120  # four prompts of 20, eight documents of 5
    assert plan.max_context == 3733 * 64
    text = str(plan)
    assert "longest prompt that fits: 238911 tokens, by the memory for KV pages (65535 if no head" in text
    assert "streaming     363 MiB: 120 pages of sinks and windows" in text


@given(
    st.integers(0, 10**6), st.integers(1, 500), st.integers(1, 500),
    st.builds(
        StreamingNeeds, page=st.integers(1, 500), most=st.integers(1, 200), least=st.integers(1, 9),
        document=st.integers(1, 600), prompts=st.integers(1, 9), sequences=st.integers(1, 64),
    ),
)  # fmt: skip
def test_as_many_pages_as_fit(available: int, page: int, num_pages: int, needs: StreamingNeeds) -> None:
    def cost(pages: int) -> int:
        return pages * page + (needs.pages(pages) + 1) * needs.page

    assert needs.pages(num_pages) <= num_pages
    assert needs.pages(num_pages) <= needs.pages(num_pages + 1)
    found = needs.fitting(available, page)
    assert available < cost(found + 1)
    assert found < 0 or cost(found) <= available
