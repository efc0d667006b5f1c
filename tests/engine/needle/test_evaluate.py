"""The evaluation: how many haystacks, where a fact stands, which cells are asked again."""

import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from headway.engine.needle.coding import Coder
from headway.engine.needle.evaluate import depth, evaluate, main, orders, plan
from headway.engine.needle.scores import saved
from headway.engine.needle.tasks import Tail


@given(
    length=st.integers(1, 2**18),
    questions=st.integers(1, 500),
    tokens=st.integers(0, 2**21),
    least=st.integers(1, 20),
)
def test_a_plan_asks_enough_and_reads_no_more_than_it_may(
    length: int, questions: int, tokens: int, least: int
) -> None:
    haystacks, each = plan(length, questions, tokens, least)
    assert haystacks * each >= questions > haystacks * (each - 1)
    assert haystacks >= min(least, questions)
    assert haystacks <= least or haystacks * length <= tokens


@given(st.lists(st.integers(0, 50), min_size=1, max_size=80), st.integers(0, 80))
def test_depth_is_where_a_value_stands_once(text: list[int], at: int) -> None:
    at, value = min(at, len(text)), [60, 61, 62]
    once = torch.tensor([*text[:at], *value, *text[at:]])
    assert depth(once, value) == at / len(once)
    assert depth(torch.tensor(text + value + value), value) is None
    assert depth(torch.tensor([*text, 60, 61, 63]), value) is None


def test_every_answer_of_every_haystack_is_counted() -> None:
    asked: list[int] = []

    def first_only(_: list[int], tails: list[Tail]) -> list[bool]:
        asked.append(len(tails))
        return [row == 0 for row in range(len(tails))]

    score = evaluate(first_only, Coder(), "many_keys", 1024, haystacks=3, questions=5, seed=1)
    assert asked == [5, 5, 5]
    assert (score.right, score.n, score.haystacks) == (3, 15, 3)
    assert sum(score.asked_at) >= 13  # a short value may stand twice


def test_orders_are_all_others_of_the_same_values() -> None:
    coder = Coder()
    ids = coder.tokenizer.encode("350924\n57\n1\n", add_special_tokens=False).ids
    others = orders(coder, [*ids, coder.end])
    assert all(sorted(other) == sorted([*ids, coder.end]) for other in others)
    texts = {coder.tokenizer.decode(other, skip_special_tokens=False) for other in others}
    assert len(texts) == 5
    assert "1\n57\n350924\n<|end|>" in texts
    assert coder.tokenizer.decode([*ids, coder.end], skip_special_tokens=False) not in texts


@pytest.mark.parametrize(("task", "right"), [("many_values", 6), ("many_queries", 0)])
def test_several_values_of_one_key_are_right_in_any_order(task: str, right: int) -> None:
    refused: set[tuple[int, ...]] = set()

    def no_first_order(_: list[int], tails: list[Tail]) -> list[bool]:
        """Only what lists the same as something refused before is right."""
        verdicts = [any(sorted(answer) == list(one) for one in refused) for _, answer in tails]
        refused.update(tuple(sorted(answer)) for _, answer in tails)
        return verdicts

    assert evaluate(no_first_order, Coder(), task, 1024, haystacks=2, questions=3, seed=1).right == right


def run(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> None:
    """The command line with `arguments`."""
    monkeypatch.setattr(sys, "argv", ["evaluate", "--threads", "1", *map(str, arguments)])
    main()


def test_a_repeated_command_asks_only_what_its_file_lacks(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "scores.json"
    common = ("--questions", 2, "--haystacks", 1, "--tokens", 0, "--json", file, "--lengths", 512, "--tasks")
    run(monkeypatch, *common, "uuid")
    run(monkeypatch, *common, "uuid", "many_keys")
    assert [(s.task, s.length, s.n) for s in saved(file)] == [("uuid", 512, 2), ("many_keys", 512, 2)]
    capsys.readouterr()
    run(monkeypatch, "--table", file)
    printed = capsys.readouterr().out
    assert "| many_keys | " in printed
    assert "| tokens | 0–10 % |" in printed


def test_a_file_is_of_one_way_of_reading(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "scores.json"
    common = ("--questions", 1, "--haystacks", 1, "--tokens", 0, "--json", file, "--lengths", 512)
    run(monkeypatch, *common, "--tasks", "uuid")
    before = file.read_text()
    with pytest.raises(SystemExit):
        run(monkeypatch, *common, "--tasks", "many_keys", "--dense-below", 512)
    assert "dense below 8192, then far in 0 2" in capsys.readouterr().err
    assert file.read_text() == before


@pytest.mark.parametrize("arguments", [("--questions", 0), ("--haystacks", 0), ("--lengths", 512, -1)])
def test_counts_below_one_are_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], arguments: tuple[object, ...]
) -> None:
    with pytest.raises(SystemExit):
        run(monkeypatch, *arguments)
    assert "--questions, --haystacks and --lengths: at least 1" in capsys.readouterr().err
