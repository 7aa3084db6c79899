"""How a guidance interval is chosen, and when two counts of right pictures differ by chance."""

from __future__ import annotations

import pytest

from sdengine.benchmarks.guidance_interval import (
    CANDIDATES,
    THROUGHOUT,
    choose,
    guided_steps,
    name_of,
    sign_test,
)


def test_the_fewest_steps_that_are_about_as_good() -> None:
    assert choose({THROUGHOUT: 98, (0.2, 0.6): 96, (0.0, 0.4): 95, (0.2, 0.8): 99}) == (0.2, 0.6)
    assert choose({THROUGHOUT: 98, (0.2, 0.6): 95, (0.2, 0.8): 90}) == THROUGHOUT
    assert choose({THROUGHOUT: 98, (0.2, 0.6): 96, (0.0, 0.4): 98}) == (0.0, 0.4)


def test_candidates_are_distinct_and_guide_some_steps() -> None:
    assert CANDIDATES[0] == THROUGHOUT
    assert len({name_of(one) for one in CANDIDATES}) == len(CANDIDATES)
    assert [guided_steps(one) for one in (THROUGHOUT, (0.2, 0.6))] == [25, 10]


@pytest.mark.parametrize(
    ("only_first", "only_second", "p"),
    [(0, 0, 1.0), (1, 0, 1.0), (5, 0, 2 / 32), (1, 5, 2 * 7 / 64), (3, 3, 1.0)],
)
def test_sign_test(only_first: int, only_second: int, p: float) -> None:
    first = [True, False] + [True] * only_first + [False] * only_second
    second = [True, False] + [False] * only_first + [True] * only_second
    assert sign_test(first, second) == pytest.approx(p)
