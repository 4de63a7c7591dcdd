"""Tests of studies of abilities: what each method keeps and gives up, before healing and after."""

import csv
import io
import json
from dataclasses import asdict

import pytest
from scipy import stats

from swm.errors import SettingsError
from swm.evaluation.paired import relative_rise, student
from swm.models.load import load_model
from swm.plan import MergePlan, Window
from swm.reporting.ability_charts import profiles_heatmap
from swm.settings import ExperimentSettings, preset_settings
from swm.studies import run as run_module
from swm.studies.abilities import Profile, abilities_conclusion, profiles_csv, profiles_of
from swm.studies.grids import parsed_grid
from swm.studies.run import run_study
from swm.texts.requests import read_requests
from swm.workspace.experiments import Experiment
from tests.reporting.test_compare import FACTS, scores
from tests.rows import a_row, ability_answers
from tests.stages.test_abilities import mine, plain_bits  # noqa: F401 (a fixture)
from tests.studies.run_cases import SMALL


@pytest.fixture
def grid(experiment, mine):  # noqa: F811
    """One method, healed, asked ten requests of one's own."""
    return {**SMALL, "ratios": [0.25], "planners": ["sleb"], "rules": [], "abilities": [str(mine)], "requests": 10}


def test_profiles_are_what_plain_forward_passes_give_before_healing_and_after(experiment, grid, mine, monkeypatch):  # noqa: F811
    merged, whole = {}, run_module.profile_run

    def profiled(run, *arguments):
        if run.stage == "merged":
            merged[run.name] = load_model(str(run.model_folder))
        return whole(run, *arguments)

    monkeypatch.setattr(run_module, "profile_run", profiled)
    assert run_study(experiment, "abilities", {**grid, "keep_models": True}) == {}
    requests = {each.id: each for each in read_requests(mine)}
    run, original = experiment.run("sleb-3"), experiment.run("baseline").read("abilities.json")
    models = {
        "abilities-merged.json": merged["sleb-3"],
        "abilities.json": load_model(str(run.model_folder)),
    }
    means = {}
    for file, (model, tokenizer) in models.items():
        (entry,) = run.read(file)["abilities"].values()
        assert entry["ids"] == original["abilities"][str(mine)]["ids"]
        expected = [plain_bits(model, tokenizer, requests[key.split(":")[0]]) for key in entry["ids"]]
        assert len(expected) == 10
        assert entry["scores"]["model"]["bits"] == pytest.approx(expected, abs=0.02)
        means[file] = sum(expected) / sum(original["abilities"][str(mine)]["scores"]["model"]["bits"]) - 1
    before, after, control = profiles_of(experiment, {"sleb-3", "control-4"})
    assert (before.name, after.name, control.name) == ("SLEB", "SLEB, healed", "original + LoRA")
    assert before.mean["value"] == pytest.approx(means["abilities-merged.json"], abs=2e-3)
    assert after.mean["value"] == pytest.approx(means["abilities.json"], abs=2e-3)
    assert [row["stage"] for row in csv.DictReader(io.StringIO(profiles_csv([before, after])))] == [
        "merged",
        "recovered",
    ]


def test_nothing_is_asked_twice_and_more_requests_are(experiment, grid, monkeypatch):
    asked, whole = [], run_module.profile_run

    def profiled(run, *arguments):
        asked.append((run.name, run.stage))
        return whole(run, *arguments)

    monkeypatch.setattr(run_module, "profile_run", profiled)
    run_study(experiment, "abilities", grid)
    every = [("baseline", "original"), ("control-4", "recovered"), ("sleb-3", "merged"), ("sleb-3", "recovered")]
    assert asked == every
    asked.clear()
    run_study(experiment, "abilities", grid)
    assert asked == []
    assert not any(run.has_model for run in experiment.runs())
    run_study(experiment, "abilities", {**grid, "requests": 12})
    assert asked == every
    assert len(next(iter(experiment.run("sleb-3").read("abilities.json")["abilities"].values()))["ids"]) == 12


def test_a_study_without_tasks_keeps_those_of_another(experiment, grid):
    plain = {**grid, "abilities": [], "heal": []}
    run_study(experiment, "methods", {**plain, "tasks": "piqa"})
    kept = [experiment.run(name).scores()["tasks"] for name in ("baseline", "sleb-3")]
    assert all("piqa" in each for each in kept)
    run_study(experiment, "abilities", {**grid, "heal": []})
    assert [experiment.run(name).scores()["tasks"] for name in ("baseline", "sleb-3")] == kept
    assert len(profiles_of(experiment, {"sleb-3"})) == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"abilities": "chess"}, "'chess' is not an ability"),
        ({"abilities": 3}, "abilities must be a list"),
        ({"abilities": [3]}, "abilities.0 must be text"),
        ({"requests": 1}, "requests"),
        ({"requests": "many"}, "requests must be"),
    ],
)
def test_a_grid_that_cannot_be_is_refused(change, message):
    with pytest.raises(SettingsError, match=message):
        parsed_grid("abilities", {**SMALL, **change})


def test_groups_in_a_grid_become_their_abilities():
    grid = parsed_grid("abilities", {**SMALL, "abilities": "reading, facts"})
    assert "facts" in grid.abilities
    assert "reading" in grid.abilities
    assert parsed_grid("abilities", {**SMALL, "abilities": "none"}).abilities == ()


def model(method, stage="merged", layers=24, control=False, **bits):
    """A method's model which needs these bits for ten requests of each ability; the original needs 1 for each."""
    answers = {name: {str(n): value + 0.01 * (n % 2) for n in range(10)} for name, value in bits.items()}
    rises = {name: relative_rise([1.0] * 10, [*found.values()]) for name, found in answers.items()}
    run = f"{method}-{layers}"
    row = a_row(run=run, runs=(run,), method=method, stage=stage, layers=layers, control=control)
    return Profile(row, rises, answers)


def test_the_sentence_names_the_best_what_others_keep_better_and_what_comes_back():
    profiles = [
        model("best", facts=1.2, reading=1.6),
        model("sleb", facts=1.4, reading=1.8),
        model("shortgpt", facts=2.0, reading=1.4),
        model("best", layers=20, facts=3.0, reading=3.0),
        model("original", "recovered", 30, True, facts=1.0, reading=0.9),
        model("best", "recovered", facts=1.18, reading=1.1),
    ]
    assert abilities_conclusion(profiles) == (
        "With 24 layers, our own search keeps most: +40 % [+40, +41] bits on average over 2 abilities; next is SLEB "
        "+60 %. ShortGPT keeps reading better (+40 % instead of +60 %). Healing takes our own search from +40 % to "
        "+15 % [+14, +15]; original, healed alike: -4 %. Most comes back of reading (+60 % to +10 %), least of facts "
        "(+20 % to +19 %)."
    ).replace("our own search", profiles[0].method)
    alike = [model("best", facts=1.5, reading=1.5), model("sleb", facts=1.5, reading=1.5)]
    assert "cannot be told apart" in abilities_conclusion(alike)
    assert abilities_conclusion(profiles[:1]) == abilities_conclusion([]) == ""


def test_an_interval_among_several_is_scipys_with_bonferronis_level():
    values = [0.3, -0.1, 0.7, 0.2, 0.4]
    for among in (1, 12):
        low, high, _ = student(values, among)
        error = stats.sem(values)
        assert (low, high) == pytest.approx(stats.t.interval(1 - 0.05 / among, 4, sum(values) / 5, error))
    narrow, wide = (relative_rise([1.0, 2.0, 1.5], [1.5, 2.1, 2.5], among) for among in (1, 12))
    assert wide["value"] == narrow["value"]
    assert wide["low"] < narrow["low"] < narrow["high"] < wide["high"]


def test_rises_of_several_seeds_are_means_whose_intervals_hold_their_spread():
    experiment = Experiment.create("study", ExperimentSettings("some-model"), FACTS)
    original = experiment.run("baseline")
    original.save("scores", scores(20.0, 0.6, 0.8))
    original.save("abilities", ability_answers(facts=[1.0, 1.1, 0.9]))
    bits = {1234: [1.3, 1.5, 1.1], 2: [1.7, 1.8, 1.6]}
    for seed, each in bits.items():
        run = experiment.create_run(f"best-4-seed-{seed}", MergePlan(6, (Window(1, 3),)), method="best")
        run.remember(merge={"parameters": 600, "size_bytes": 1})
        run.save("scores", scores(50.0, 0.3, 0.3))
        run.discard_scores("aside")
        run.remember(recovery=asdict(preset_settings("quick", seed=seed)))
        run.save("scores", scores(30.0, 0.4, 0.4))
        run.save("abilities", ability_answers(facts=each))
    (found,) = profiles_of(experiment, {"best-4-seed-2"})
    assert found.row.seeds == (1234, 2)
    by_seed = [sum(each) / 3.0 - 1 for each in bits.values()]
    assert found.rises["facts"]["value"] == pytest.approx(sum(by_seed) / 2)
    assert found.answers["facts"] == pytest.approx({"a": 1.5, "b": 1.65, "c": 1.35})
    alone = [relative_rise([1.0, 1.1, 0.9], each) for each in bits.values()]
    assert found.rises["facts"]["low"] < min(each["low"] for each in alone)
    assert json.loads(json.dumps(found.to_dict()))["rises"]["facts"]["value"] == pytest.approx(sum(by_seed) / 2)


def test_the_heat_map_shows_each_rise_in_its_cell():
    profiles = {
        "SLEB": {"Mean": {"value": 0.4, "low": 0.3, "high": 0.5}, "reading": {"value": 12.5, "low": 9.0, "high": 16.0}}
    }
    (trace,) = profiles_heatmap(
        {**profiles, "angular": {"facts": {"value": 0.01, "low": -0.1, "high": 0.2}}}, "Mean"
    ).data
    shown = [
        {cell[0]: text for cell, text in zip(trace.customdata[row], trace.text[row], strict=True)} for row in (0, 1)
    ]
    assert shown == [{"Mean": "+40", "Facts": "", "Reading": "+1,250"}, {"Mean": "", "Facts": "+1", "Reading": ""}]
    assert list(trace.y) == ["SLEB", "angular"]
