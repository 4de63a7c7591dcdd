"""Verdicts on rows written here: better, worse, undecided, not comparable, not measured."""

import math
from dataclasses import replace

import pytest

from swm.evaluation.paired import UNDECIDED
from swm.plan import WidthCut
from swm.reporting.names import text_name
from swm.reporting.row import Differences
from swm.reporting.verdict import in_short
from swm.reporting.verdict import verdict as verdict_of
from tests.rows import a_row


def verdict(row):
    return str(verdict_of(row))


def score(difference, low, high, verdict, tasks=7, documents=1400, fewest=200):
    names = ("difference", "low", "high", "verdict", "tasks", "documents", "fewest")
    return dict(zip(names, (difference, low, high, verdict, tasks, documents, fewest), strict=True))


def ratio(value, low, high):
    return {"ratio": value, "low": low, "high": high}


def against(perplexity=None, **scores):
    return Differences("control (original + LoRA)", scores, perplexity or {})


def row(**changes):
    """A healed model of 24 of 30 layers, 1.2 times as fast and a fifth smaller, with a control."""
    known = {
        "stage": "recovered", "layers": 24, "parameters": 113e6, "size_bytes": 400,
        "deltas": {"layers": -6, "size_bytes": -100}, "speedup": {"value": 1.2, "low": 1.1, "high": 1.3},
        "conditions": {"texts": "lambada"}, "recovery_text": "instructions", "seed": 1234, "control_run": "control",
    }  # fmt: skip
    return a_row(**{**known, **changes})


HEAD = "24 of 30 layers, 1.20 times as fast, 20 % smaller."
SAME = "Compared with the original healed in the same way (one training seed):"


def test_worse():
    found = verdict(
        row(
            against_control=against(
                {"lambada": ratio(1.5, 1.4, 1.6), "squad": ratio(1.09, 1.04, 1.14)},
                choice_logprob=score(math.log(0.992), math.log(0.985), math.log(0.999), "worse"),
                accuracy=score(-0.013, -0.022, -0.004, "worse"),
            )
        )
    )
    assert found == (
        f"{HEAD} {SAME} perplexity on SQuAD 9 % higher [4, 14]; 0.8 % less sure of the right answer [0.1, 1.5]; "
        "accuracy 1.3 points lower [0.4, 2.2]."
    )


def test_better():
    found = verdict(
        row(
            against_control=against(
                {"squad": ratio(0.95, 0.93, 0.97)},
                choice_logprob=score(math.log(1.3), math.log(1.2), math.log(1.4), "better"),
                accuracy=score(0.02, 0.01, 0.03, "better"),
            )
        )
    )
    assert found == (
        f"{HEAD} {SAME} perplexity on SQuAD 5.0 % lower [3.0, 7.0]; 30 % surer of the right answer [20, 40]; "
        "accuracy 2.0 points higher [1.0, 3.0]."
    )


def test_undecided():
    found = verdict(
        row(
            against_control=against(
                {"squad": ratio(1.01, 0.98, 1.04)},
                choice_logprob=score(0.001, -0.01, 0.012, "not significant"),
                accuracy=score(-0.01, -0.03, 0.01, "not significant"),
            )
        )
    )
    assert found == (
        f"{HEAD} {SAME} perplexity on SQuAD unclear: between -2.0 and +4.0 %; certainty of the right answer unclear: "
        "between -1.0 and +1.2 %; accuracy unclear after 1,400 questions in 7 tasks: between -3.0 and +1.0 points."
    )


def test_too_few_questions():
    few = {"verdict": "too few documents", "documents": 140, "fewest": 20}
    found = verdict(
        row(
            against_control=against(
                choice_logprob=score(0.1, 0.05, 0.15, **few), accuracy=score(0.1, 0.05, 0.15, **few)
            )
        )
    )
    assert found == (
        f"{HEAD} {SAME} certainty of the right answer: too few questions to tell (20 per task; at least 30 needed); "
        "accuracy: too few questions to tell (20 per task; at least 30 needed)."
    )


def test_a_broken_model_is_so_many_times_worse():
    broken = against({"squad": ratio(1234.5, 1100.0, 1400.0)})
    assert verdict(row(against_control=broken)).endswith("perplexity on SQuAD more than 1,000 times as high.")
    broken = against({"squad": ratio(12.34, 11.0, 14.0)})
    assert verdict(row(against_control=broken)).endswith("perplexity on SQuAD 12.3 times as high [11.0, 14.0].")


def test_tasks_above_chance_are_named_where_they_say_something_else():
    entries = against(accuracy=score(0.01, -0.013, 0.033, "not significant"))
    entries = replace(entries, above_chance=score(-0.043, -0.065, -0.021, "worse", tasks=5))
    assert verdict(row(against_control=entries)).endswith(
        "accuracy unclear after 1,400 questions in 7 tasks: between -1.3 and +3.3 points (on the 5 tasks above chance: "
        "4.3 points lower [2.1, 6.5])."
    )
    entries = replace(entries, above_chance=score(-0.01, -0.03, 0.01, "not significant", tasks=5))
    assert verdict(row(against_control=entries)).endswith("and +3.3 points.")


def test_without_a_control_a_healed_model_is_not_praised_for_what_lora_did():
    gain = against(accuracy=score(0.082, 0.026, 0.139, "better"))
    assert verdict(row(against_original=gain, control_run=None)) == (
        f"{HEAD} Compared with the original without training (there is no control, so a gain may come from "
        "training alone): accuracy 8 points higher [3, 14]."
    )
    assert "(its control, control, is not evaluated, so a gain may come from training alone)" in verdict(
        row(against_original=gain)
    )


def test_several_seeds_are_counted():
    loss = against({"squad": ratio(1.5, 1.4, 1.6)})
    assert "in the same way (3 training seeds): perplexity" in verdict(row(against_control=loss, seeds=[1, 2, 3]))


def test_an_unhealed_model_is_compared_with_the_original():
    loss = against({"squad": ratio(2.0, 1.9, 2.1)})
    assert verdict(row(stage="merged", recovery_text=None, against_original=loss)) == (
        f"{HEAD} Compared with the original: perplexity on SQuAD 2.0 times as high [1.9, 2.1]."
    )


def test_the_control_is_judged_against_the_original():
    gain = against(accuracy=score(0.05, 0.02, 0.08, "better", tasks=1, documents=300))
    found = verdict(row(control=True, layers=30, against_original=gain))
    assert found == (
        "The control: the original, nothing merged, after the same training. Compared with the original "
        "(one training seed): accuracy 5.0 points higher [2.0, 8.0]."
    )


def test_not_measured():
    assert verdict(row(speedup=None)) == (
        "24 of 30 layers, speed not measured, 20 % smaller. What it cost is not measured yet."
    )
    assert verdict(row(stage="original", layers=30)) == "The original model: 30 layers, 113.0 million parameters."


def test_not_comparable():
    reason = "Averages are not compared: different documents or metrics."
    assert verdict(row(not_compared=[reason])) == f"{HEAD} {reason}"
    half = against({"squad": ratio(1.2, 1.1, 1.3)})
    # the original was scored on other documents, the control on the same
    assert (
        verdict(row(not_compared=[reason], against_control=half))
        == f"{HEAD} {SAME} perplexity on SQuAD 20 % higher [10, 30]."
    )
    other = "Scores are not compared with those of control: they are of other tasks or documents."
    half = replace(half, not_compared=(other,))
    assert verdict(row(against_control=half)) == f"{HEAD} {SAME} perplexity on SQuAD 20 % higher [10, 30]. {other}"


@pytest.mark.parametrize(
    ("calibration", "recovery", "shared", "expected"),
    [
        ("lambada", "instructions", {}, "squad"),
        ("squad", "instructions", {}, "lambada"),
        ("wikitext", "squad", {}, "lambada"),
        ("lambada", "squad", {}, "lambada"),  # both are of a kind it was made with: the first measured
        ("coqa", "instructions", {"lambada": "recovery"}, "squad"),
    ],
)
def test_perplexity_is_judged_on_text_of_another_kind_where_there_is_one(calibration, recovery, shared, expected):
    same = {"lambada": ratio(1.2, 1.1, 1.3), "squad": ratio(1.2, 1.1, 1.3)}
    changes = {"conditions": {"texts": calibration}, "recovery_text": recovery, "shared_texts": shared}
    assert f"perplexity on {text_name(expected)} " in verdict(row(against_control=against(same), **changes))


@pytest.mark.parametrize(
    ("change", "said"), [(-100, "20 % smaller"), (-1, "the same size"), (1, "the same size"), (40, "11 % larger")]
)
def test_size_is_rounded_to_percent(change, said):
    deltas = {"layers": -6, "size_bytes": change}
    assert verdict(row(deltas=deltas)).startswith(f"24 of 30 layers, 1.20 times as fast, {said}.")


def test_a_width_cut_is_named():
    narrow = row(width=WidthCut(0.1), deltas={"layers": -6, "size_bytes": -100})
    assert verdict(narrow).startswith("24 of 30 layers, width cut by 10 %, 1.20 times as fast")


@pytest.mark.parametrize(
    ("accuracy", "sureness", "said"),
    [
        (
            (-0.02, -0.037, -0.002, "worse"), (-0.4, -0.5, -0.3, "worse"),
            "In short: of 100 questions it answers about 2.0 fewer right [0.2, 3.7], "
            "and is less sure of the right ones.",
        ),
        (
            (0.001, -0.01, 0.012, "no difference shown"), (-0.4, -0.5, -0.3, "worse"),
            "In short: of 100 questions it answers between 1.0 fewer and 1.2 more right, "
            "and it is less sure of the right ones.",
        ),
        (
            (0.03, 0.02, 0.04, "better"), (0.2, 0.1, 0.3, "better"),
            "In short: of 100 questions it answers about 3.0 more right [2.0, 4.0], and is surer of the right ones.",
        ),
        (
            (-0.02, -0.03, -0.01, "worse"), (0.0, -0.1, 0.1, "no difference shown"),
            "In short: of 100 questions it answers about 2.0 fewer right [1.0, 3.0], "
            "and is equally certain, as far as these questions show.",
        ),
    ],
)  # fmt: skip
def test_in_everyday_words(accuracy, sureness, said):
    undecided = {"no difference shown": UNDECIDED}
    scores = {
        name: score(*numbers, undecided.get(kind, kind))
        for name, (*numbers, kind) in (("accuracy", accuracy), ("choice_logprob", sureness))
    }
    assert in_short(row(against_control=against(**scores))) == said
    assert in_short(row(against_control=against(accuracy=scores["accuracy"]))) == ""
    assert in_short(row()) == ""
    assert in_short(row(control=True, against_original=against(**scores))) == ""


def test_a_speed_that_may_be_none_is_not_stated():
    faster = {"value": 1.34, "low": 0.93, "high": 1.58}
    assert "layers, speed unclear (0.93 to 1.58 times), 20 % smaller." in verdict(row(speedup=faster))
    assert "layers, 1.34 times as fast, 20 % smaller." in verdict(row(speedup={**faster, "low": 1.01}))
    assert "layers, 0.80 times as fast" in verdict(row(speedup={"value": 0.8, "low": 0.7, "high": 0.9}))
