"""The generators: same seed same sample, answers in the text, length kept, ids equal to tokenised text."""

from dataclasses import replace
from random import Random

import pytest
import torch
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from headway.engine.needle import WEIGHTS
from headway.engine.needle.coding import Coder
from headway.engine.needle.evaluate import TASKS, haystack
from headway.engine.needle.mix import draw, skip
from headway.engine.needle.tasks import Sample, Spec, encode, make

SPECS = [spec for specs in TASKS.values() for spec in specs]
FREE = [replace(spec, layout="free", question_share=0.3) for spec in SPECS]


@pytest.fixture(scope="module")
def coder() -> Coder:
    return Coder()


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(WEIGHTS)


def chat(sample: Sample, count: int) -> list[dict[str, str]]:
    """The sample as messages, with its first `count` questions."""
    messages = [{"role": "system", "content": "".join(sample.system)}] if sample.system else []
    for i, q in enumerate(sample.questions[:count]):
        context, ask = "".join(sample.context), "".join(q.ask)
        first = f"{ask}\n{context}" if sample.question_first else f"{context}{sample.joint}{ask}"
        messages.append({"role": "user", "content": ask if i else first})
        messages.append({"role": "assistant", "content": "".join(q.prefix) + "".join(q.answer)})
    return messages


@pytest.mark.parametrize("spec", SPECS + FREE, ids=str)
def test_ids_equal_the_tokenised_chat(coder: Coder, tokenizer: PreTrainedTokenizerBase, spec: Spec) -> None:
    for seed in range(4):
        sample = make(Random(seed), coder, 400, spec)
        sample.chat = True
        ids, spans = encode(sample, coder, 400)
        text = tokenizer.apply_chat_template(chat(sample, len(spans)), tokenize=False)
        assert tokenizer.encode(text, add_special_tokens=False) == ids


@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_same_seed_same_sample(coder: Coder, spec: Spec) -> None:
    assert make(Random(7), coder, 300, spec) == make(Random(7), coder, 300, spec)
    assert make(Random(7), coder, 300, spec) != make(Random(8), coder, 300, spec)


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("length", [512, 2048])
def test_answers_are_in_the_haystack_and_the_length_is_kept(coder: Coder, task: str, length: int) -> None:
    for index in range(4):
        prefix, tails = haystack(coder, task, length, index, questions=8, seed=0)
        text = coder.tokenizer.decode(prefix)
        assert tails
        for ask, answer in tails:
            assert length * 0.7 - 100 < len(prefix) + len(ask) + len(answer) <= length
            assert answer[-1] == coder.end
            said = coder.tokenizer.decode(answer[:-1]).removeprefix("For ")
            for word in said.replace(",", "").replace(":", "").split():
                assert word in text


@pytest.mark.parametrize("length", [64, 128, 256, 1024])
def test_training_samples_fit(coder: Coder, length: int) -> None:
    rng = Random(3)
    for _ in range(50):
        _, spec = draw(rng, length)
        ids, spans = encode(make(rng, coder, length, spec), coder, length)
        assert len(ids) <= length
        assert all(ids[stop - 1] == coder.end for _, stop in spans)


def test_skipped_positions_rise_and_stay_below_the_reach() -> None:
    for seed in range(20):
        positions = skip(Random(seed), 1024)
        assert positions[0] == 0
        assert (positions.diff() >= 1).all()
        assert positions[-1] < 131072


@pytest.mark.parametrize("reach", [1000, 1024, 1023])
def test_a_text_as_long_as_the_reach_has_nothing_to_skip(reach: int) -> None:
    for length in range(reach, reach + 8):
        assert skip(Random(0), length, reach).equal(torch.arange(length))
