"""Tests of swm.jobs.tracking."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swm.jobs.tracking import Pace
from swm.progress import UNLIKE


def told(reports, now):
    pace = Pace()
    for time, done, total in reports:
        pace.report(done, total, time)
    return pace.seconds_left(now)


@given(st.integers(5, 1000), st.floats(0.2, 50), st.integers(0, 900), st.floats(0, 1e6), st.data())
def test_even_work_ends_when_foretold(total, each, first, start, data):
    first = min(first, total - 2)
    done = data.draw(st.integers(first + 1, total - 1))
    reports = [(start + each * (count - first), count, total) for count in range(first, done + 1)]
    elapsed, later = each * (done - first), data.draw(st.floats(0, each))
    left = told(reports, reports[-1][0] + later)
    if elapsed < 9.99 or (done - first) / (total - first) < 0.0499:
        assert left == 0
    elif elapsed > 10.01 and (done - first) / (total - first) > 0.0501:
        assert left == pytest.approx(max(1, each * (total - done) - later), rel=1e-6, abs=1e-3)


def test_each_step_is_foretold_by_its_own_pace():
    slow = [(10.0 * done, done, 10) for done in range(11)]
    assert told(slow[:6], 50) == 50
    quick = [(100 + 2.0 * done, done, 1000) for done in range(101)]
    assert told([*slow, *quick], 300) == 1800
    again = [(300 + 3.0 * done, done, 1000) for done in range(101)]  # the same total from the start
    assert told([*slow, *quick, *again], 600) == 2700


def test_the_pace_follows_a_machine_whose_load_changes():
    """Ten slow minutes, then quick ones: the slow ones soon no longer count, as they would in a mean of all."""
    slow = [(10.0 * done, done, 1000) for done in range(61)]
    quick = [(600 + 1.0 * done, 60 + done, 1000) for done in range(1, 641)]
    assert told(slow, 600) == 9400
    assert told([*slow, *quick], 1240) == 300


def test_nothing_is_foretold_without_a_total_or_from_few_uneven_parts():
    assert told([(0, 0, 0), (500, 0, 0)], 600) == 0
    assert told([(0, 0, 3), (500, 1, 3)], 600) == 0
    assert told([(0, 0, 100)], 600) == 0
    assert told([(0, 0, UNLIKE), (500, 4000, UNLIKE)], 600) == 0  # shares of unlike parts
