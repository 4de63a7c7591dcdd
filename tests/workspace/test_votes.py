"""Votes: kept, counted, and their interval against the formula written out."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swm.errors import ExperimentError
from swm.settings import ExperimentSettings
from swm.workspace.experiments import Experiment
from swm.workspace.votes import FILE, TIE, Vote, add_vote, takes_votes, tallies, votes
from tests.reporting.test_compare import FACTS


@pytest.fixture
def study():
    return Experiment.create("study", ExperimentSettings("m"), FACTS)


def test_votes_are_kept_in_their_order_and_damaged_lines_left_out(study):
    assert votes(study) == []
    add_vote(study, "p", ("a", "b"), "a")
    with (study.folder / FILE).open("ab") as file:
        file.write(b'{"prompt": 1}\n\xff\xfe\n[]\n')
    add_vote(study, "q\nq", ("b", "a"), TIE)
    assert [(vote.prompt, vote.models, vote.winner) for vote in votes(study)] == [
        ("p", ("a", "b"), "a"),
        ("q\nq", ("b", "a"), TIE),
    ]


def test_who_was_not_compared_cannot_win(study):
    with pytest.raises(ExperimentError, match="none of the models"):
        add_vote(study, "p", ("a", "b"), "c")
    assert votes(study) == []


def test_votes_on_an_example_are_kept_in_this_home_and_a_demo_takes_none(home, monkeypatch):
    example = Experiment.open("example-demo")
    shipped = {file: file.stat().st_mtime_ns for file in example.folder.rglob("*")}
    add_vote(example, "p", ("a", "b"), "a")
    assert [vote.winner for vote in votes(example)] == ["a"]
    assert (home / "votes" / "example-demo.jsonl").is_file()
    assert {file: file.stat().st_mtime_ns for file in example.folder.rglob("*")} == shipped
    monkeypatch.setenv("SWM_DEMO", "demo")
    assert not takes_votes(example)
    with pytest.raises(ExperimentError, match="read-only"):
        add_vote(example, "p", ("a", "b"), "a")


@given(st.lists(st.sampled_from(["a", "b", TIE]), max_size=40), st.booleans())
def test_tallies_count_in_any_order_and_have_wilsons_interval(winners, swapped):
    cast = [Vote("p", ("b", "a") if swapped and i % 2 else ("a", "b"), winner) for i, winner in enumerate(winners)]
    if not winners:
        assert tallies(cast) == []
        return
    (tally,) = tallies(cast)
    first, second = winners.count("a"), winners.count("b")
    assert (tally.models, tally.wins, tally.ties) == (("a", "b"), (first, second), winners.count(TIE))
    n = first + second
    if not n:
        assert tally.share is None
        return
    z, p = 1.959963984540054, first / n
    middle = (p + z * z / (2 * n)) / (1 + z * z / n)
    reach = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    assert (tally.share, tally.low, tally.high) == pytest.approx((p, middle - reach, middle + reach), abs=1e-9)


def test_the_pair_with_the_most_votes_comes_first():
    cast = [Vote("p", ("a", "b"), "a"), Vote("p", ("c", "b"), "c"), Vote("q", ("b", "c"), "b")]
    assert [tally.models for tally in tallies(cast)] == [("b", "c"), ("a", "b")]
