"""Differences and averages by pencil, on numbers written here."""

import csv
import io
import json
import statistics
from dataclasses import asdict

import pytest

from swm.plan import MergePlan, Window
from swm.reporting.compare import comparable, compare, flat_rows
from swm.reporting.figures import conditions_of, csv_text, lines, table
from swm.reporting.judged import judged
from swm.reporting.names import row_name, text_title
from swm.settings import ExperimentSettings, preset_settings
from swm.workspace.experiments import Experiment

FACTS = {
    "layers": 6,
    "parameters": 1000,
    "parameters_per_layer": 100,
    "size_bytes": 4000,
    "width": 8,
    "dtype": "float32",
}


def scores(perplexity, boolq, piqa):
    def task(value):
        return {"value": value, "stderr": 0.03, "metric": "acc", "documents": 40}

    interval = {"value": perplexity, "low": perplexity - 1, "high": perplexity + 1}
    return {"perplexity": {"lambada": interval}, "tasks": {"boolq": task(boolq), "piqa": task(piqa)}, "limit": 40}


@pytest.fixture
def experiment():
    experiment = Experiment.create("study", ExperimentSettings("some-model"), FACTS)
    run = experiment.create_run("first", MergePlan(6, (Window(1, 3),)), 0.9)
    experiment.run("baseline").save("scores", scores(20.0, 0.6, 0.8))
    experiment.run("baseline").save(
        "timing", {"tokens_per_second": 10.0, "latency_ms": 100.0, "peak_memory_bytes": 5000}
    )
    run.remember(merge={"parameters": 800, "size_bytes": 3200})
    run.save("scores", scores(50.0, 0.5, 0.6))
    return experiment


def test_differences_are_to_the_baseline(experiment):
    base, row = compare(experiment)
    assert (base.layers, row.layers, row.parameters, row.size_bytes) == (6, 4, 800, 3200)
    assert row.average == pytest.approx(0.55)
    # two independent standard errors of 0.03: sqrt(2 * 0.03^2) / 2
    assert row.average_stderr == pytest.approx(0.0212, abs=1e-4)
    deltas = {"layers": -2, "parameters": -200, "perplexity": 30.0, "average": -0.15}
    assert {key: row.deltas[key] for key in deltas} == pytest.approx(deltas)
    assert row.deltas["tokens_per_second"] is None
    assert set(base.deltas.values()) == {0}


def test_recovered_run_shows_the_merged_model_before_it(experiment):
    run = experiment.run("first")
    run.discard_scores("aside")
    run.remember(recovery=asdict(preset_settings("quick", steps=3)))
    run.save("scores", scores(25.0, 0.6, 0.7))
    rows = compare(experiment)
    assert [row_name(row) for row in flat_rows(rows)] == ["original", "first (merged)", "first (merged + LoRA)"]
    assert [row.perplexity for row in flat_rows(rows)] == [20.0, 50.0, 25.0]
    assert rows[1].before_recovery.deltas["perplexity"] == 30.0
    assert [row.fitted_first for row in flat_rows(rows)] == [False, False, False]
    recovery = run.settings["recovery"]
    run.remember(recovery={**recovery, "repaired": "fit"})
    assert [row.fitted_first for row in flat_rows(compare(experiment))] == [False, False, True]
    run.remember(recovery=recovery, plan={**run.plan.to_dict(), "rule": "fit"})
    assert [row.fitted_first for row in flat_rows(compare(experiment))] == [False, False, True]


def test_csv_reads_back(experiment):
    rows = list(csv.DictReader(io.StringIO(csv_text(compare(experiment)))))
    assert rows[1]["run"] == "first"
    assert float(rows[1]["boolq"]) == 0.5
    assert float(rows[1]["perplexity_lambada"]) == 50.0
    assert rows[1]["tokens_per_second"] == ""


def test_scores_of_other_documents_are_not_compared(experiment):
    fewer = scores(50.0, 0.5, 0.6)
    del fewer["tasks"]["boolq"]
    experiment.run("first").save("scores", fewer)
    row = compare(experiment)[1]
    assert row.average == pytest.approx(0.6)
    assert row.deltas["average"] is None


def test_speed_is_compared_with_the_original_as_timed_in_turn_with_the_run(experiment):
    first = {"tokens_per_second": 24.0, "latency_ms": 50.0, "peak_memory_bytes": 4000}
    busy = {"tokens_per_second": 20.0, "latency_ms": 60.0, "peak_memory_bytes": 5000}
    speedup = {"value": 1.2, "low": 1.1, "high": 1.3}
    experiment.run("first").save("timing", {**first, "baseline": busy, "speedup": speedup})
    row = compare(experiment)[1]
    assert row.deltas["tokens_per_second"] == 4.0
    assert row.deltas["latency_ms"] == -10.0
    assert "1.20 [1.10, 1.30]" in table(compare(experiment))


def test_table_shows_values_with_errors_and_dashes_for_what_is_missing(experiment):
    printed = table(compare(experiment)).splitlines()
    width = max(line.index("  ", 3) for line in printed[1:])
    found = {line[:width].strip(): line[width:] for line in printed}
    assert "20.0 [19.0, 21.0]" in found["perplexity, LAMBADA"]
    assert "50.0 [44.1, 55.9]" in found["boolq, % (acc, 40 documents)"]
    assert found["tokens per second"].split() == ["10.0", "–"]
    assert len({len(line) for line in printed}) == 1


def test_a_study_says_what_it_was_measured_with(experiment):
    assert conditions_of(compare(experiment)) == ""
    for name, seconds in (("baseline", 30.0), ("first", 47.2)):
        versions = {"torch": "2.13", "lm_eval": "0.4"}
        conditions = {"dtype": "float32", "device": "cpu", "seed": 7, "seconds": seconds, "versions": versions}
        experiment.run(name).save("scores", {**scores(20.0, 0.6, 0.8), "conditions": conditions})
    rows = compare(experiment)
    assert conditions_of(rows) == (
        "40 documents per task, zero-shot; float32 on cpu, seed 7; torch 2.13, lm_eval 0.4. "
        "Scoring a model took 30 to 47 s."
    )
    line = list(csv.DictReader(io.StringIO(csv_text(rows))))[1]
    assert (line["boolq_documents"], line["measured_seed"], line["measured_seconds"]) == ("40", "7", "47.2")
    assert line["versions"] == "torch=2.13 lm_eval=0.4"


def timing(latency, beside=None):
    """As `timing.json`: with the original as it was measured in turn."""
    numbers = {"tokens_per_second": 32000 / latency, "latency_ms": latency, "peak_memory_bytes": 2**20}
    return numbers if beside is None else {**numbers, "baseline": timing(beside)}


def test_two_timings_that_contradict_each_other_say_beside_what_they_were_measured(experiment):
    run = experiment.run("first")
    experiment.run("baseline").save("timing", timing(2047.0))  # on another day than the run
    run.save("timing", timing(2047.0, beside=2231.0))
    cells = dict(lines(flat_rows(compare(experiment))))
    assert cells["latency, ms"][-1] == "2,047 (original: 2,231)"
    experiment.run("baseline").save("timing", timing(2231.0))
    assert dict(lines(flat_rows(compare(experiment))))["latency, ms"][-1] == "2,047"


def test_a_timing_that_two_rows_share_says_of_which_it_is(experiment):
    run = experiment.run("first")
    run.save("scores-merged", scores(50.0, 0.5, 0.6))
    run.remember(recovery=asdict(preset_settings("quick")))
    run.save("timing", timing(2000.0, beside=2200.0))
    cells = dict(lines(flat_rows(compare(experiment))))
    assert cells["speed measured on"][-2:] == ["first (merged + LoRA)", "itself"]


def test_only_like_is_compared_with_like(experiment):
    run, value = experiment.run("first"), {"value": 50.0, "low": 49.0, "high": 51.0, "texts": 32, "length_tokens": 256}
    known = {**value, "text_hash": "a"}
    experiment.run("baseline").save("scores", {**scores(20.0, 0.6, 0.8), "perplexity": {"lambada": known}})
    run.save("scores", {**scores(50.0, 0.5, 0.6), "perplexity": {"lambada": value}})  # of before hashes were kept
    assert compare(experiment)[-1].deltas["perplexity"] == 0.0
    cases = {
        "another text": ({"squad": value}, "The original's perplexity on SQuAD was not measured."),
        "another length": ({"lambada": {**value, "length_tokens": 9}}, "another version or length of lambada"),
        "another version": ({"lambada": {**value, "text_hash": "x"}}, "another version or length of lambada"),
    }
    for found, reason in cases.values():
        run.save("scores", {**scores(50.0, 0.5, 0.6), "perplexity": found})
        row = compare(experiment)[-1]
        assert row.deltas["perplexity"] is None
        assert reason in " ".join(row.not_compared)
    tasks = dict(scores(50.0, 0.5, 0.6)["tasks"])
    removed = next(iter(tasks))
    kept = {task: score for task, score in tasks.items() if task != removed}
    run.save("scores", {**scores(50.0, 0.5, 0.6), "tasks": kept})
    rows = compare(experiment)
    assert rows[-1].deltas["average"] is None
    assert f"different tasks (only one has {removed})" in " ".join(rows[-1].not_compared)
    cells = dict(lines(flat_rows(rows)))
    label = "average of tasks, % (different documents: not comparable)"
    assert [cell.split("(")[1] for cell in cells[label]] == [f"{len(tasks)} tasks)", f"{len(kept)} tasks)"]


def test_rows_of_other_documents_are_left_out_of_a_chart_of_averages(experiment):
    rows = {row.run: row for row in compare(experiment)}
    assert comparable(rows) == (rows, [])
    rows["first"].scores["boolq"]["documents"] = 41
    alike, unlike = comparable(rows)
    assert (list(alike), unlike) == (["baseline"], ["first"])


def test_every_figure_is_in_table_columns_and_csv_as_the_files_have_it():
    """Held against the JSON files of a shipped experiment, read here."""
    demo = Experiment.open("example-demo")
    rows = flat_rows(compare(demo))
    shown = lines(rows)
    in_csv = {
        row_name(row): line
        for row, line in zip(rows, csv.DictReader(io.StringIO(csv_text(compare(demo)))), strict=True)
    }
    seen = 0
    for place, row in enumerate(rows):
        before = row.stage == "merged" and demo.run(row.run).stage == "recovered"
        found = json.loads((demo.run(row.run).folder / f"scores{'-merged' * before}.json").read_text())
        known = {f"{task}, %": (task, score["value"], 100) for task, score in found["tasks"].items()}
        known |= {
            f"perplexity, {text_title(text)}": (f"perplexity_{text}", entry["value"], 1)
            for text, entry in found["perplexity"].items()
        }
        known["average of tasks, %"] = "average", statistics.fmean(s["value"] for s in found["tasks"].values()), 100
        for name in ("choice_logprob", "bits_per_byte"):
            values = [score[name]["value"] for score in found["tasks"].values() if score.get(name)]
            title = {"choice_logprob": "choice log-probability, nats", "bits_per_byte": "bits per byte"}[name]
            known[f"average {title}"] = f"average_{name}", statistics.fmean(values), 1
        for title, (column, value, scale) in known.items():
            (cell,) = (cells[place] for label, cells in shown if label.startswith(title))
            number = cell.split()[0].replace(",", "")
            assert abs(float(number) - scale * value) <= 0.501 * 10.0 ** -len(number.partition(".")[2]), title
            assert float(in_csv[row_name(row)][column]) == pytest.approx(value)
            seen += 1
    assert seen > 40


def test_a_row_as_json_has_what_only_judging_adds_once_it_is_judged():
    (row, *_), (verdict, *_) = (rows(compare(Experiment.open("example-demo"))) for rows in (list, judged))
    plain, added = row.to_dict(), verdict.to_dict()
    assert json.loads(json.dumps(added)) == added
    assert {*added} - {*plain} == {"against_original", "against_control", "verdict"}
    assert added["verdict"].startswith("The original model: 30 layers")
    assert plain["windows"] == []
    assert plain["width"] == {"ratio": 0.0, "method": "flap"}
