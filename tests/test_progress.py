"""Progress of one part of several: a share of the whole, in order, never back."""

from hypothesis import given
from hypothesis import strategies as st

from swm.progress import UNLIKE, named, no_progress, part_of


@given(st.integers(1, 9), st.lists(st.tuples(st.integers(0, 50), st.integers(0, 50)), min_size=1))
def test_parts_fill_the_whole_in_thousandths_and_never_go_back(parts, reports):
    seen = []
    for place in range(parts):
        report = part_of(lambda done, total, text: seen.append((done, total, text)), place, parts, "x")
        for done, total in reports:
            report(min(done, total), total, "y")
    assert all(total == UNLIKE and 0 <= done <= UNLIKE for done, total, _ in seen)
    assert [done for done, _, _ in seen] == sorted(done for done, _, _ in seen)
    assert seen[0][2] == f"x (1 of {parts}): y"


def test_the_second_half_of_a_part_is_that_share_of_the_whole():
    seen = []
    report = part_of(lambda *told: seen.append(told), 1, 4, "merge")
    report(0, 0, "loading")
    report(1, 2, "half")
    assert [done for done, _, _ in seen] == [round(UNLIKE / 4), round(3 * UNLIKE / 8)]


def test_a_named_stage_says_its_name_first():
    seen = []
    named("merge", lambda *told: seen.append(told))(1, 3, "saving")
    assert seen == [(1, 3, "merge: saving")]
    assert no_progress(1, 3, "x") is None
