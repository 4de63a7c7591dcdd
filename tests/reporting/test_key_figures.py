"""The numbers behind a verdict: from the reference's value to the run's, held against the shipped demo's own files."""

import json
import math
import re

import pytest

from swm.evaluation.paired import ACCURACY, CHOICE_LOGPROB
from swm.reporting.compare import compare, flat_rows
from swm.reporting.judged import judged
from swm.reporting.key_figures import in_llama_cpp, key_figures
from swm.workspace.experiments import Experiment
from swm.workspace.names import SHIPPED


@pytest.fixture(scope="module")
def rows():
    rows = flat_rows(judged(compare(Experiment.open("example-demo"))))
    return {(row["run"], row["stage"]): row for row in rows}


def ends(text):
    before, after = re.fullmatch(r"([\d.,]+) → ([\d.,]+)(?: %| MiB)?", text).groups()
    return float(before), float(after)


@pytest.mark.parametrize(("run", "stage"), [("best-24", "merged"), ("best-24", "recovered"), ("control", "recovered")])
def test_each_number_goes_from_the_reference_to_the_run(rows, run, stage):
    row, original = rows[run, stage], rows["baseline", "original"]
    reference = rows["control", "recovered"] if stage == "recovered" and run != "control" else original
    shown = key_figures(row)
    assert ends(shown[ACCURACY].value) == pytest.approx([100 * r["average"] for r in (reference, row)], abs=0.051)
    perplexities = [r["perplexities"]["squad"]["value"] for r in (reference, row)]
    assert ends(shown["perplexity"].value) == pytest.approx(perplexities, abs=0.051)
    if run != "control":
        assert ends(shown["size"].value) == pytest.approx([r["size_bytes"] / 2**20 for r in (original, row)], abs=0.51)
    change = row["average_choice_logprob"] - reference["average_choice_logprob"]
    assert float(shown[CHOICE_LOGPROB].value.split()[0]) == pytest.approx(100 * (math.exp(change) - 1), abs=0.51)
    levels = f"from {reference['average_choice_logprob']:.2f} to {row['average_choice_logprob']:.2f} nats"
    assert levels in shown[CHOICE_LOGPROB].help
    # three tasks of two choices, four of four: (3 ln 1/2 + 4 ln 1/4) / 7
    assert "guessing gives -1.09." in shown[CHOICE_LOGPROB].help
    chance = [score["chance"] for score in row["scores"].values()]
    assert f"guessing: {100 * sum(chance) / len(chance):.0f} %" in shown[ACCURACY].label


def test_speed_and_size_where_the_file_is_used(rows):
    """The figures of llama_cpp.json, which the client wrote."""
    said = in_llama_cpp(rows["best-24", "recovered"])
    measured = json.loads((SHIPPED / "example-demo" / "runs" / "best-24" / "llama_cpp.json").read_text())
    for entry in (measured["baseline"], measured):
        assert f"{entry['size_bytes'] / 2**20:,.0f}" in said
    assert f"{measured['speedup']['value']:.2f}" in said
    assert in_llama_cpp(rows["baseline", "original"]) == ""
    assert in_llama_cpp(rows["best-24", "merged"]) == ""


def test_speed_names_where_it_was_measured_not_where_the_scores_were(rows):
    row = rows["best-24", "recovered"]
    assert "in float32 on cpu with 2 threads" in key_figures(row)["speed"].help
    moved = {**row, "conditions": {**row["conditions"], "device": "cuda", "dtype": "bfloat16"}}
    assert key_figures(moved)["speed"].help == key_figures(row)["speed"].help
    assert "float32" in key_figures(moved)["size"].help


def test_without_a_reference_there_is_the_value_alone(rows):
    shown = key_figures(rows["baseline", "original"])
    assert shown[ACCURACY].value == f"{100 * rows['baseline', 'original']['average']:.1f} %"
    assert [shown[name].change for name in (ACCURACY, CHOICE_LOGPROB, "perplexity", "size")] == [None] * 4
    assert shown[CHOICE_LOGPROB].value == f"{rows['baseline', 'original']['average_choice_logprob']:.2f}"
