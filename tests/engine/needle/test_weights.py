"""The shipped weights: small, loadable by name, and right about facts in 2,048 to 32,768 tokens."""

from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from headway.engine.needle import WEIGHTS
from headway.engine.needle.coding import Coder
from headway.engine.needle.evaluate import evaluate, haystack
from headway.engine.needle.verdicts import dense, far, load, trainable

DIARY = """\
We left the coast before sunrise because my sister wanted to see the market while the boats were still coming.
The road climbs slowly there, past two farms and a closed petrol station, and nobody said much for an hour.
{fact}
By noon the fog had lifted. We ate bread with olives on a wall, and Peter told the story about the broken
ferry again, which everybody knows by heart. In the afternoon it rained so hard that we stayed in the car and
played cards. The hotel was cheap, clean and a little sad; the woman at the desk kept a parrot that could say
good morning in Dutch.
"""


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    return load()


def ask(model: PreTrainedModel, text: str) -> str:
    """The model's answer to one user message, by greedy decoding."""
    tokenizer = AutoTokenizer.from_pretrained(WEIGHTS)
    chat = [{"role": "user", "content": text}]
    ids = tokenizer.apply_chat_template(
        chat, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    out = model.generate(**ids, max_new_tokens=24, do_sample=False)
    return tokenizer.decode(out[0, ids["input_ids"].shape[1] :], skip_special_tokens=True)


def test_size_and_dtypes() -> None:
    path = WEIGHTS / "model.safetensors"
    assert path.stat().st_size <= 12e6
    with safe_open(path, "pt") as file:
        assert "model.embed_tokens.weight" in file.keys()  # noqa: SIM118 - not a dict


def test_shape_is_what_the_methods_need(model: PreTrainedModel) -> None:
    config = model.config
    assert config.model_type == "qwen3"
    assert config.num_hidden_layers >= 4
    assert config.num_attention_heads >= 8
    assert config.num_attention_heads > config.num_key_value_heads
    assert config.head_dim >= 32


def test_training_model_equals_the_shipped_one(model: PreTrainedModel) -> None:
    ours = trainable(model)
    ids = torch.arange(5, 205)[None]
    with torch.inference_mode():
        expected = model(ids).logits
        torch.testing.assert_close(
            ours.logits(ours(ids, torch.arange(200)[None])), expected, atol=2e-3, rtol=1e-3
        )


@pytest.mark.parametrize("task", ["single", "many_keys", "key_value"])
def test_finds_facts_in_2048_tokens(model: PreTrainedModel, task: str) -> None:
    score = evaluate(dense(model), Coder(), task, 2048, haystacks=4, questions=8, seed=11)
    assert score.right / score.n >= 0.9, score


@pytest.mark.parametrize("task", ["some_keys", "many_keys", "key_value"])
def test_finds_facts_in_4096_tokens_and_linear_reading_agrees(model: PreTrainedModel, task: str) -> None:
    text, tails = haystack(Coder(), task, 4096, index=0, questions=24, seed=11)
    densely, linearly = dense(model)(text, tails), far(model, [0, 2])(text, tails)
    assert sum(densely) >= 0.85 * len(tails)
    assert sum(a == b for a, b in zip(densely, linearly, strict=True)) >= 0.9 * len(tails)


@pytest.mark.slow
@pytest.mark.parametrize("task", ["some_keys", "many_keys", "key_value"])
def test_finds_facts_in_32768_tokens(model: PreTrainedModel, task: str) -> None:
    score = evaluate(far(model, [0, 2]), Coder(), task, 32768, haystacks=6, questions=12, seed=11)
    assert score.right / score.n >= 0.75, score


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_finds_facts_in_32768_tokens_read_densely(model: PreTrainedModel) -> None:
    score = evaluate(dense(model), Coder(), "some_keys", 32768, haystacks=1, questions=24, seed=11)
    assert score.right / score.n >= 0.75, score


@pytest.mark.parametrize(
    ("fact", "question", "answer"),
    [
        ("The secret code for the garage is 482913.", "What is the secret code for the garage?", "482913"),
        (
            "By the way, the door code for falcon is 7390412.",
            "Can you tell me the door code for falcon?",
            "7390412",
        ),
        (
            "The special magic number for crimson river is 551208.",
            "What is the special magic number for crimson river mentioned in the provided text?",
            "551208",
        ),
    ],
)
def test_chat_in_plain_words_over_own_prose(
    model: PreTrainedModel, fact: str, question: str, answer: str
) -> None:
    assert ask(model, DIARY.format(fact=fact) + "\n" + question) == answer


def test_weights_folder_is_complete() -> None:
    names = {path.name for path in Path(WEIGHTS).iterdir()}
    assert {
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
        "chat_template.jinja",
    } <= names
    AutoModelForCausalLM.from_pretrained(WEIGHTS)
