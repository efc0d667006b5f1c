"""The whole engine around real tiny models, stepped by hand."""

from pathlib import Path

import pytest
import torch
from transformers.utils import logging as transformers_logging

from headway.engine.build import build
from headway.engine.config import EngineConfig
from headway.engine.config_section import parse
from headway.engine.core import Engine
from headway.engine.errors import ConfigError
from headway.engine.messages import Submit, Tokens

from .hash_runner import answers, finish, first_event, make_submit
from .models.families import VOCAB, save
from .models.families import build as build_model

PAGE = 16
PROMPT = torch.randint(2, VOCAB, (200,), generator=torch.Generator().manual_seed(1)).tolist()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    transformers_logging.disable_progress_bar()
    return tmp_path_factory.mktemp("models")


def make(folder: Path, family: str, recipe: dict[str, object] | None = None, **model: object) -> Engine:
    sections = {
        "model": {"name": str(save(family, folder)), "threads": 1, **model},
        "cache": {"memory_gib": 0.01, "page_size": PAGE},
        "scheduler": {"max_step_tokens": 48, "max_running": 8},
        "recipe": recipe or {},
    }
    return build(parse(EngineConfig, sections))


def generated(family: str, prompt: list[int], max_tokens: int) -> list[int]:
    with torch.inference_mode():
        ids = torch.tensor([prompt])
        answer = build_model(family).generate(
            ids, max_new_tokens=max_tokens, do_sample=False, eos_token_id=None
        )
    return answer[0, len(prompt) :].tolist()


def test_what_a_page_held_before_does_not_matter(folder: Path) -> None:
    """Every page is full of NaN; a mixed batch of chunks and decodes must not see it."""
    engine = make(folder, "llama")
    cache = engine._runner._cache
    for layer in range(2):
        for tensor in cache.pages(layer):
            tensor.fill_(torch.nan)
    prompts = {str(n): PROMPT[n : n + length] for n, length in enumerate((1, PAGE, PAGE + 1, 47, 130))}
    for name, prompt in prompts.items():
        engine.submit(make_submit(name, prompt, max_tokens=12))
    found = answers(finish(engine))
    engine.close()
    assert found == {name: generated("llama", prompt, 12) for name, prompt in prompts.items()}


def test_prompt_scores_are_the_models_own(folder: Path) -> None:
    engine = make(folder, "llama")
    engine.submit(make_submit("scored", PROMPT, prompt_logprobs=3))
    scores = first_event(finish(engine), "scored").prompt_logprobs
    engine.close()
    with torch.inference_mode():
        expected = build_model("llama")(torch.tensor([PROMPT])).logits[0].log_softmax(-1)
    assert scores[0] is None
    found = torch.tensor([score.logprob for score in scores[1:]])
    torch.testing.assert_close(found, expected[range(199), PROMPT[1:]], atol=2e-4, rtol=1e-4)
    assert [score.top[0][0] for score in scores[1:]] == expected[:-1].argmax(-1).tolist()


def test_lengths_with_different_frequencies_share_no_pages(folder: Path) -> None:
    """longrope changes its frequencies at 64 tokens: what was computed below is wrong above."""
    engine = make(folder, "llama-longrope")
    cached = []
    for name, max_tokens in (("short", 4), ("short too", 8), ("long", 40), ("long too", 50)):
        engine.submit(make_submit(name, PROMPT[:40], max_tokens=max_tokens))
        cached.append(first_event(finish(engine), name).cached_tokens)
    engine.close()
    assert cached == [0, 32, 0, 32]


def test_the_plan_counts_what_is_remembered_of_requests(folder: Path) -> None:
    """Two layers of two KV heads of 16 channels, 8 requests, twice; the method that remembers most."""
    plans = []
    for method, others in (("quest", []), ("quest", ["adaptive", "recycled"])):
        recipe = {"decode": {"method": method, "budget": 400}, "requests": {"methods": others}}
        engine = make(folder, "llama", recipe=recipe)
        plans.append(engine.info.plan)
        engine.close()
    lists = 2 * (2 * 2048 * 8 + 4 + 16 * 4)
    assert "states" not in plans[0]
    assert f"states        {lists * 8 * 2 / 2**20:.4g} MiB" in plans[1]


STREAMING = {"method": "streaming", "dense_below": 16, "dense_tail": 8, "sink_size": 4, "window_size": 16}


def test_a_prefill_recipe_is_served_and_shared(folder: Path) -> None:
    """Tiles of 8 tokens in pages of 16: whole granules are pages, of which eight end before the tail."""
    engine = make(folder, "llama", recipe={"prefill": STREAMING | {"tile": 8}})
    first, again = (
        finish_one(engine, make_submit(name, PROMPT[:137], max_tokens=3)) for name in ("first", "again")
    )
    engine.close()
    assert [event.token_ids for event in first] == [event.token_ids for event in again]
    assert again[0].cached_tokens == 128
    assert first[-1].prefill.tokens == 137
    assert 0.2 < first[-1].prefill.density < 0.6
    assert first[0].prefill is None


def finish_one(engine: Engine, submit: Submit) -> list[Tokens]:
    engine.submit(submit)
    return finish(engine)


def test_a_granule_that_no_step_holds_is_refused(folder: Path) -> None:
    """Tiles of 24 tokens in pages of 16 are granules of 48: a step holds 48, but eight may be decodes."""
    with pytest.raises(ConfigError, match=r"granules of 48.*scheduler\.max_step_tokens"):
        make(folder, "llama", recipe={"prefill": STREAMING | {"tile": 24}})


def test_a_model_stops_at_its_own_end_token(folder: Path) -> None:
    greedy = generated("llama", PROMPT[:9], 6)
    engine = make(folder, "llama")
    engine.submit(make_submit("stop", PROMPT[:9], max_tokens=6, stop_token_ids=(greedy[3],)))
    last = finish(engine)[-1]
    engine.close()
    assert isinstance(last, Tokens)
    assert (last.finish_reason, last.stop_token) == ("stop", greedy[3])


def test_closing_gives_the_model_back(folder: Path) -> None:
    engine = make(folder, "llama")
    model = engine._runner._loaded.model
    assert model.config._attn_implementation != "eager"
    engine.close()
    assert model.config._attn_implementation == "eager"


def test_a_context_beyond_the_model_is_refused(folder: Path) -> None:
    with pytest.raises(ConfigError, match="made for 512 tokens"):
        make(folder, "llama", max_context=1024)
