"""Bands of a map and their sentence: pencil, and a second way to split numbers in two."""

import random
import re

import numpy as np
import pytest

from swm.plan import Window
from swm.similarity.blocks import (
    STEP,
    band_sentence,
    bands,
    first_tokens_sentence,
    long_states_sentence,
    unmerged_sentence,
)
from swm.similarity.measure import Measure, in_words
from swm.workspace.experiments import Experiment


def map_of(near, far=None):
    """A map with these similarities of neighbours; layers further apart have the lowest of the way, or less by far."""
    count = len(near) + 1
    matrix = [[1.0] * count for _ in range(count)]
    for i in range(count):
        for j in range(i + 1, count):
            value = min(near[i:j]) - (far or 0.0) * (j - i - 1)
            matrix[i][j] = matrix[j][i] = value
    return matrix


def test_two_blocks_with_a_step_between_them():
    matrix = map_of([0.9, 0.9, 0.3, 0.95, 0.95, 0.95])
    assert bands(matrix) == (Window(3, 6), Window(0, 2))
    assert band_sentence(matrix, "CKA") == (
        "Layers 3 to 6 form a block: each is like the next (CKA 0.95) and like the one 3 layers on (0.95). "
        "Layers 0 to 2 form a block: each is like the next (CKA 0.90) and like the one 2 layers on (0.90)."
    )


def test_a_band_is_less_alike_further_away():
    matrix = map_of([0.2] + [0.98] * 14, far=0.03)
    assert band_sentence(matrix, "CKA") == (
        "Layers 1 to 15 form a band: each is like the next (CKA 0.98) and less like the one 10 layers on (0.71)."
    )


def test_what_first_tokens_do_is_said_by_the_numbers_inside_the_band():
    without, whole = map_of([0.2, 0.9, 0.9, 0.9], far=0.1), map_of([0.2, 0.99, 0.99, 0.99])
    told = first_tokens_sentence(without, whole, 4, "CKA")
    # inside layers 1 to 4: three pairs of 0.9, two of 0.8, one of 0.7
    assert told.startswith(
        "Between layers 1 and 4, two layers have CKA 0.83 on average without the first 4 tokens of each text, and 0.99 "
        "with them."
    )
    assert "massive activations" in told
    assert first_tokens_sentence(whole, whole, 2, "CKA").endswith("Here these tokens make little difference.")
    assert "0.00 on average" in first_tokens_sentence([[1.0]], [[1.0]], 1, "CKA")


def test_equal_neighbours_are_one_block_and_short_runs_none():
    assert bands(map_of([0.8, 0.81, 0.79, 0.8])) == (Window(0, 4),)
    assert bands([[1.0]]) == ()
    assert bands(map_of([0.9])) == ()
    assert band_sentence(map_of([0.1, 0.9, 0.1]), "CKA").startswith("No three")


@pytest.mark.parametrize("seed", range(40))
def test_steps_are_the_lower_of_the_two_groups_that_vary_least(seed):
    rng = random.Random(seed)
    near = [rng.choice([rng.uniform(0, 1), rng.uniform(0.9, 1)]) for _ in range(rng.randrange(3, 30))]
    best = None
    for level in sorted(near)[1:]:  # within-group variance, which the split must minimise
        low, high = np.array([v for v in near if v < level]), np.array([v for v in near if v >= level])
        if len(low) and high.mean() - low.mean() > STEP:
            within = low.var() * len(low) + high.var() * len(high)
            best = min(best or (within, level), (within, level))
    text = "".join("-" if best is None or value >= best[1] else " " for value in near)
    expected = sorted((len(run.group()) + 1 for run in re.finditer("-{2,}", text)), reverse=True)
    assert [len(band) for band in bands(map_of(near))] == expected


def test_long_states_are_named_where_they_are_longest():
    told = long_states_sentence([10.0, 10.0, 20.0], [12.0, 104.0, 81.0])
    assert told.startswith(
        "After layer 1 the longest state is 10 times the median, and more than 4 times after 2 of 3 layers"
    )
    assert long_states_sentence([10.0, 10.0], [39.0, 12.0]) == ""
    assert long_states_sentence([0.0], [0.0]) == ""


def test_on_the_shipped_map_they_are_in_the_lower_band():
    """The wall between layers 9 and 10 is where the longest states end, not where layers change what they do."""
    data = Experiment.open("example-demo").similarity("cka_skip4")
    ratios = [most / median for median, most in zip(data["norm_median"], data["norm_max"], strict=True)]
    assert min(ratios[2:9]) > 4 > max(ratios[9:])


def test_a_block_that_does_not_merge_is_explained_only_where_it_does_not():
    alike = [[1.0 if i == j or (i < 3 and j < 3) else 0.5 for j in range(6)] for i in range(6)]
    assert "block, layers 0-2, is not what merges" in unmerged_sentence(alike, 0.99, (Window(3, 5),))
    assert "is not what merges" in unmerged_sentence(alike, 0.99, (Window(2, 5),))  # one layer of it alone
    assert unmerged_sentence(alike, 0.99, (Window(1, 2), Window(4, 5))) == ""
    assert unmerged_sentence(alike, 0.99, ()) == ""
    assert unmerged_sentence([[1.0, 0.1], [0.1, 1.0]], 0.99, (Window(0, 1),)) == ""


@pytest.mark.parametrize(
    ("measure", "words"),
    [
        (Measure("cka"), "CKA"),
        (
            Measure("cka-rbf", "update", skip_tokens=4),
            "CKA, Gaussian kernel, updates, without the first 4 tokens",
        ),
        (Measure("cosine", samples="texts", texts="task:boolq"), "Cosine, by text, prompts of boolq"),
        (Measure("cka-biased", texts="squad"), "CKA, biased, squad"),
    ],
)
def test_the_name_of_a_map_in_words(measure, words):
    assert in_words(measure.name) == words


def test_the_name_of_a_map_of_a_plugin_that_is_gone_stays():
    assert in_words("cca_skip4") == "cca_skip4"
