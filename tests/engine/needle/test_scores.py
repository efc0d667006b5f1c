"""Scores count by depth, keep an interval, survive their file and become tables."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headway.engine.needle.scores import DEPTHS, Score, append, by_depth, by_task, saved

depths = st.none() | st.floats(0, 1, exclude_max=True)


@given(answers=st.lists(st.tuples(st.booleans(), depths), min_size=1))
def test_every_answer_is_counted_once_and_by_depth_where_it_is_known(
    answers: list[tuple[bool, float | None]],
) -> None:
    score = Score("single", 512)
    for right, depth in answers:
        score.count(right, depth)
    known = [right for right, depth in answers if depth is not None]
    assert (score.right, score.n) == (sum(right for right, _ in answers), len(answers))
    assert (sum(score.right_at), sum(score.asked_at)) == (sum(known), len(known))
    low, high = score.interval()
    share, rounding = score.right / score.n, 1e-9
    assert 0 <= low <= share + rounding
    assert share - rounding <= high <= 1


def test_wilsons_interval() -> None:
    # Newcombe 1998 (Statistics in Medicine 17), table I: 81 of 263.
    assert Score("single", 512, right=81, n=263).interval() == pytest.approx((0.2553, 0.3662), abs=5e-5)


def test_a_file_gives_back_what_was_appended(tmp_path: Path) -> None:
    path = tmp_path / "scores.json"
    assert saved(path) == []
    scores = [Score("single", 512, 3, 4, 2, 1.5), Score("uuid", 1024, 1, 2, 1, 0.5)]
    scores[0].count(True, 0.35)
    for score in scores:
        append(path, score)
    assert saved(path) == scores


def test_a_file_of_another_subject_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "scores.json"
    append(path, Score("single", 512, subject="old weights"))
    assert saved(path, "old weights") == saved(path)
    with pytest.raises(ValueError, match="'old weights', these are of 'new weights'"):
        saved(path, "new weights")


def test_tables_add_up_and_show_what_is_missing() -> None:
    first, second = Score("single", 1024), Score("uuid", 512)
    for right, depth in ((True, 0.0), (False, 0.05), (True, 0.99)):
        first.count(right, depth)
    second.count(False, None)
    third = Score("single", 1024, right=1, n=1)
    assert by_task([first, second, third]).splitlines() == [
        "| task | 512 | 1024 |",
        "| --- | --- | --- |",
        "| single | – | 75 (4) |",
        "| uuid | 0 (1) | – |",
    ]
    rows = by_depth([first, second, third]).splitlines()
    assert rows[2] == "| 512 |" + " – |" * DEPTHS
    assert rows[3] == "| 1024 | 50 (2) |" + " – |" * (DEPTHS - 2) + " 100 (1) |"
