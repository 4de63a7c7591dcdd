"""The numbers behind a verdict: from the reference's value to the run's, held against the shipped demo's own files."""

import json
import math
import re
from dataclasses import replace

import pytest

from swm.disk.names import SHIPPED
from swm.evaluation.paired import ACCURACY, CHOICE_LOGPROB, SCORES, TOO_FEW, UNDECIDED
from swm.reporting.compare import compare, flat_rows
from swm.reporting.judged import judged
from swm.reporting.key_figures import in_llama_cpp, key_figures
from swm.reporting.numbers import points, ratio, speedup
from swm.reporting.row import Differences
from swm.reporting.verdict import verdict
from swm.workspace.experiments import Experiment


@pytest.fixture(scope="module")
def rows():
    rows = flat_rows(judged(compare(Experiment.open("example-demo"))))
    return {(row.run, row.stage): row for row in rows}


def ends(text):
    before, after = re.fullmatch(r"([\d.,]+) → ([\d.,]+)(?: %| MiB)?", text).groups()
    return float(before), float(after)


@pytest.mark.parametrize(("run", "stage"), [("best-24", "merged"), ("best-24", "recovered"), ("control", "recovered")])
def test_each_number_goes_from_the_reference_to_the_run(rows, run, stage):
    row, original = rows[run, stage], rows["baseline", "original"]
    reference = rows["control", "recovered"] if stage == "recovered" and run != "control" else original
    shown = key_figures(row)
    accuracy = row.compared_with.scores[ACCURACY]
    if accuracy["verdict"] == UNDECIDED:  # then only what the model itself reaches is stated
        assert shown[ACCURACY].value == f"{100 * row.average:.1f} %"
        assert shown[ACCURACY].change.startswith("unclear: ")
    else:
        assert ends(shown[ACCURACY].value) == pytest.approx([100 * r.average for r in (reference, row)], abs=0.051)
    perplexities = [r.perplexities["squad"]["value"] for r in (reference, row)]
    assert ends(shown["perplexity"].value) == pytest.approx(perplexities, abs=0.051)
    if run != "control":
        assert ends(shown["size"].value) == pytest.approx([r.size_bytes / 2**20 for r in (original, row)], abs=0.51)
    change = row.average_choice_logprob - reference.average_choice_logprob
    assert float(shown[CHOICE_LOGPROB].value.split()[0]) == pytest.approx(100 * (math.exp(change) - 1), abs=0.51)
    levels = f"from {reference.average_choice_logprob:.2f} to {row.average_choice_logprob:.2f} nats"
    assert levels in shown[CHOICE_LOGPROB].help
    # three tasks of two choices, four of four: (3 ln 1/2 + 4 ln 1/4) / 7
    assert "guessing gives -1.09." in shown[CHOICE_LOGPROB].help
    chance = [score["chance"] for score in row.scores.values()]
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
    moved = replace(row, conditions={**row.conditions, "device": "cuda", "dtype": "bfloat16"})
    assert key_figures(moved)["speed"].help == key_figures(row)["speed"].help
    assert "float32" in key_figures(moved)["size"].help


def test_without_a_reference_there_is_the_value_alone(rows):
    shown = key_figures(rows["baseline", "original"])
    assert shown[ACCURACY].value == f"{100 * rows['baseline', 'original'].average:.1f} %"
    assert [shown[name].change for name in (ACCURACY, CHOICE_LOGPROB, "perplexity", "size")] == [None] * 4
    assert shown[CHOICE_LOGPROB].value == f"{rows['baseline', 'original'].average_choice_logprob:.2f}"


def with_scores(row, verdict_of_all, low, high):
    """The row with differences of another size; the documents stay."""
    entry = {"difference": (low + high) / 2, "low": low, "high": high, "verdict": verdict_of_all}
    entry |= {"tasks": 7, "documents": 35, "fewest": 5}
    ratio = {"ratio": math.exp(entry["difference"]), "low": math.exp(low), "high": math.exp(high), "paired": True}
    return replace(row, against_control=Differences("control", dict.fromkeys(SCORES[:2], entry), {"squad": ratio}))


def test_sentence_tiles_and_table_leave_unsaid_what_is_not_shown(rows):
    """Twenty points more from five documents a task; then differences whose intervals contain none."""
    row = replace(rows["best-24", "recovered"], speedup={"value": 1.34, "low": 0.93, "high": 1.58})
    few = with_scores(row, TOO_FEW, 0.038, 0.362)
    shown, said = key_figures(few), str(verdict(few))
    assert (shown[ACCURACY].value, shown[ACCURACY].change) == ("–", "too few questions: 5 per task")
    assert (shown[CHOICE_LOGPROB].value, shown[CHOICE_LOGPROB].change) == ("–", "too few questions: 5 per task")
    assert said.count("too few questions to tell (5 per task; at least 30 needed)") == 2
    assert points(few.against_control.scores[ACCURACY]) == "too few documents"
    assert (shown["speed"].value, shown["speed"].change) == ("unclear", "× 0.93 to 1.58")
    assert "speed unclear (0.93 to 1.58 times)" in said
    assert speedup(row.speedup) == "unclear [0.93, 1.58]"
    unclear = with_scores(row, UNDECIDED, -0.01, 0.385)
    shown, said = key_figures(unclear), str(verdict(unclear))
    assert shown[ACCURACY].change == "unclear: -1.0 to +38.5 points"
    assert (shown[CHOICE_LOGPROB].value, shown[CHOICE_LOGPROB].change) == ("unclear", "-1 to +47 %")
    assert shown["perplexity"].change == "unclear: -1 to +47 %"
    differences = unclear.against_control
    assert points(differences.scores[ACCURACY]) == "unclear [-1.0, +38.5]"
    assert ratio(differences.perplexity["squad"]) == "unclear × [0.990, 1.47]"
    assert "→" not in shown[ACCURACY].value + shown["perplexity"].value
    assert "certainty of the right answer unclear: between -1 and +47 %" in said
    assert "accuracy unclear after 35 questions in 7 tasks: between -1 and +38 points" in said
