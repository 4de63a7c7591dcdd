"""Every page on real files: the shipped demo, an experiment made here, no experiment at all, and odd addresses."""

import json
import os
import re
import time
from dataclasses import asdict, replace
from pathlib import Path
from urllib.parse import parse_qs

import pytest
from streamlit.testing.v1 import AppTest

from pages.shared.live import opening_threshold
from pages.shared.target import layers_for
from swm.plan import MergePlan, Window
from swm.reporting.known_plans import BY_MEMORY, BY_SPEED, chosen_sentence, known_plans, with_front
from swm.reporting.study_charts import staircase_chart
from swm.search.find import extended, threshold_path
from swm.search.kept_path import kept_path, save_path
from swm.search.threshold_path import ThresholdPath
from swm.settings import PRESETS, ExperimentSettings
from swm.stages.create import create_experiment
from swm.studies.grids import KINDS
from swm.workspace.experiments import Experiment
from swm.workspace.state import State, this_process
from tests.jobs.test_child import wait_for
from tests.pages.test_words import unmarked
from tests.reporting.test_compare import FACTS, scores
from tests.reporting.test_judged import scored
from tests.rows import ability_answers

ROOT = Path(__file__).parents[2]
PAGES = sorted(str(page.relative_to(ROOT)) for page in (ROOT / "pages").glob("*.py"))


def opened(page, **query):
    test = AppTest.from_file(str(ROOT / "app.py"), default_timeout=30)
    for key, value in query.items():
        test.query_params[key] = value
    if page != "app.py":
        test.switch_page(page)
    test.run()
    assert not test.exception, test.exception
    return test


def texts(test):
    return " ".join(
        str(e.value) for kind in ("title", "markdown", "info", "error", "warning") for e in getattr(test, kind)
    )


@pytest.fixture
def study():
    """An experiment of 6 layers with a path, a map and an evaluated run, written as the stages write them."""
    study = Experiment.create("study", ExperimentSettings("some-model"), {**FACTS, "dtype": "float32", "width": 8})
    matrix = [[1.0 if i == j else 0.9 for j in range(6)] for i in range(6)]
    conditions = {"dtype": "float32", "seconds": 1.0}
    study.save_similarity(
        "cka",
        {"matrix": matrix, "block_influence": [0.1] * 6, "norm": [5.0] * 6, "tokens": 99, "conditions": conditions},
    )
    study.save_similarity(
        "cka_skip4",
        {"matrix": matrix, "block_influence": [0.1] * 6, "norm": [5.0] * 6, "tokens": 99, "conditions": conditions},
    )
    save_path(study, threshold_path(6, lambda above, window: 1 - 0.1 * len(window), 0.5))
    run = study.create_run("first", MergePlan(6, (Window(1, 3),)), 0.7)
    run.remember(merge={"parameters": 800, "size_bytes": 3200})
    run.save("scores", scores(50.0, 0.5, 0.6))
    study.run("baseline").save("scores", scores(20.0, 0.6, 0.8))
    return study


@pytest.fixture
def no_demo(monkeypatch, tmp_path):
    monkeypatch.setattr("swm.disk.names.SHIPPED", tmp_path / "nothing")


@pytest.mark.parametrize("page", ["app.py", *PAGES])
def test_page_is_filled_by_the_demo_that_ships(page):
    test = opened(page)
    assert test.sidebar.selectbox[0].value == "example-demo"
    assert len(test.title) == 1
    assert not test.error
    if page == "pages/compare.py":
        assert any("best-24 (merged + LoRA)" in table.value.columns for table in test.table)
    if page in ("app.py", "pages/compare.py"):
        assert "24 of 30 layers" in texts(test)
        assert "Compared with the original healed in the same way" in texts(test)


@pytest.mark.parametrize("page", ["app.py", *PAGES])
def test_page_without_any_experiment_says_how_to_make_one(page, no_demo):
    test = opened(page)
    if page == "pages/experiment.py":
        assert "Create and measure" in [button.label for button in test.button]
        return
    told = {"app.py": "No runs yet. Create an experiment first.", "pages/sweeps.py": "There are no sweeps yet"}
    assert told.get(page, "There are no experiments yet") in texts(test)
    assert "compared with the original" not in texts(test)


@pytest.mark.parametrize("page", ["app.py", *PAGES])
def test_page_shows_an_experiment_of_ones_own(page, study, no_demo):
    test = opened(page)
    assert test.sidebar.selectbox[0].value == "study"
    assert not test.error


@pytest.mark.parametrize("page", ["app.py", *PAGES])
def test_damaged_files_give_a_message_not_a_traceback(page, study, no_demo):
    for file in (
        "similarity/cka.json",
        "path/rdsc.json",
        "runs/first/run.json",
        "runs/first/scores.json",
        "state.json",
    ):
        (study.folder / file).write_text('{"schema": 1, "x": [')
    test = opened(page)
    assert "cannot be read" in texts(test)


def test_preview_shows_the_windows_tried_at_the_threshold(study, no_demo):
    # 1 - 0.1 * layers: two layers score 0.8, three 0.7, five 0.5.
    accepted = {
        threshold: list(
            opened("pages/preview.py", threshold=threshold).dataframe[0].value.query("verdict == 'accepted'").window
        )
        for threshold in ("0.85", "0.8", "0.5")
    }
    assert accepted == {"0.85": [], "0.8": ["3-4", "1-2"], "0.5": ["3-4", "2-4", "1-4", "0-4"]}


def test_windows_by_hand_are_carried_to_a_run(study, no_demo):
    test = opened("pages/preview.py")
    test.session_state["preview_windows_study"] = "0-1"
    test.run()
    assert not test.exception
    assert "is not known yet" in " ".join(c.value for c in test.caption)
    test = opened("pages/run.py", run="new run", windows="0-1,3-4")
    assert test.text_input(key="run_windows").value == "0-1,3-4"


def test_windows_by_hand_without_a_layer_that_the_model_needs_are_refused(study, no_demo):
    data = study.read("experiment.json")
    study.write("experiment.json", {**data, "model_facts": {**data["model_facts"], "needed_layers": [[1]]}})
    for windows, refused in (("0-1", True), ("2-3", False)):
        test = opened("pages/preview.py")
        test.session_state["preview_windows_study"] = windows
        test.run()
        assert not test.exception
        assert any("needs layer 1 to write text" in e.value for e in test.warning) is refused
        offered = [link.proto.label for link in test.get("page_link")]
        assert ("Merge these windows" in offered) is not refused
        test = opened("pages/run.py", run="new run", windows=windows)
        assert any("needs layer 1 to write text" in e.value for e in test.error) is refused
        assert test.button(key="run_start").disabled is refused


def test_a_shipped_experiment_answers_with_what_its_models_said():
    test = opened("pages/playground.py", experiment="example-demo")
    names = test.multiselect(key="playground_recorded_example-demo").value
    assert names == ["original", "best-24 (merged + LoRA)", "control (original + LoRA)"]
    demo = Experiment.open("example-demo")
    spoken = {sample["prompt"]: sample["answer"] for sample in demo.run("best-24").scores()["samples"]}
    (said,) = [m.value for m in test.markdown if "of France?" in m.value]
    assert unmarked(said).split() == spoken["The capital of France is"].split()
    assert "24 of 30 layers" in [c.value for c in test.caption]
    assert not test.button


def test_home_lets_the_leading_model_speak_beside_the_original():
    test = opened("app.py")
    demo = Experiment.open("example-demo")
    original, best = (demo.run(name).scores()["samples"][0] for name in ("baseline", "best-24"))
    said = [unmarked(markdown.value).split() for markdown in test.markdown]
    assert original["answer"].split() in said
    assert best["answer"].split() in said
    assert f"“{original['prompt']} …”" in [caption.value for caption in test.caption]


def planned(study, planner, windows, perplexity, rule="keep_first"):
    plan = MergePlan(6, windows, rule)
    numbers = {"perplexity": perplexity, "perplexity_original": 30.0, "seconds": 1.0, "similarity": 0.9}
    study.save_planned(planner, plan.layers_left, {**plan.to_dict(), **numbers, "planner": planner, "version": 3})
    return plan


def target(kind, value, method="sleb"):
    """The preview's second door with a target entered."""
    test = opened("pages/preview.py", preview_door="target", target_kind=kind, target_method=method)
    test.number_input(key=f"target_{kind}_study").set_value(value).run()
    assert not test.exception
    return test


def merges(test):
    """The windows that the link to the Run page carries; None without a link."""
    links = [link.proto.query_string for link in test.get("page_link") if "windows=" in link.proto.query_string]
    return parse_qs(links[0])["windows"][0] if links else None


def test_a_target_in_layers_shows_the_methods_plan(study, no_demo):
    planned(study, "sleb", (Window(1, 2),), 40.0)
    assert merges(target("layers", 5)) == "1-2"
    missing = target("layers", 4)
    assert missing.button(key="target_find").label == "Find the plan"
    assert merges(missing) is None
    assert any("--planner sleb --layers 4" in code.value for code in missing.code)
    assert "nothing to merge" in texts(target("layers", 6))


def test_where_llama_cpp_takes_kinds_from_places_only_fitting_plans_can_be_asked_for(study, no_demo):
    file = study.folder / "experiment.json"
    data = json.loads(file.read_text())
    data["model_facts"]["layer_kinds"] = ["sliding attention", "full attention"] * 3
    file.write_text(json.dumps(data))
    planned(study, "sleb", (Window(1, 2),), 40.0)
    test = target("layers", 5)
    assert any("llama.cpp cannot run this plan" in c.value and "layers 2, 3, 4 of" in c.value for c in test.caption)
    test.checkbox(key="target_keep").check().run()
    assert test.button(key="target_find").label == "Find the plan"
    assert any("--layers 5 --keep-period" in code.value for code in test.code)
    study.save_planned("sleb", 5, {**study.planned("sleb", 5), "windows": [[4, 5]], "keep_period": True})
    test.run()
    assert merges(test) == "4-5"
    assert not any("llama.cpp cannot" in c.value for c in test.caption)


def test_a_target_in_memory_or_speed_becomes_layers(study, no_demo):
    facts = study.model_facts
    planned(study, "sleb", (Window(0, 3),), 40.0)
    study.save_cost({"layers_ms": 6.0, "rest_ms": 2.0})
    saved = 3 * facts["parameters_per_layer"] / facts["parameters"]
    mib = facts["size_bytes"] * (1 - saved) / 2**20
    assert layers_for(study, "memory", mib * 1.0001) == 3
    assert layers_for(study, "memory", mib * 0.9999) == 2
    assert layers_for(study, "speed", 8 / (6 / 2 + 2) - 1e-9) == 3  # half the layers, and the rest as before
    assert layers_for(study, "speed", 8 / (6 / 2 + 2) + 1e-9) == 2
    assert layers_for(study, "speed", 9.0) is None
    assert merges(target("speed", 1.6)) == "0-3"
    assert "Not even two layers" in texts(target("speed", 9.0))


def test_a_target_in_perplexity_is_settled_once_a_smaller_plan_is_beyond(study, no_demo):
    planned(study, "sleb", (Window(1, 2),), 33.0)
    first = target("perplexity", 1.2)
    assert merges(first) == "1-2"
    assert first.button(key="target_find")
    assert any("--within 1.2" in code.value for code in first.code)
    planned(study, "sleb", (Window(1, 3),), 37.0)
    settled = target("perplexity", 1.2)
    assert merges(settled) == "1-2"
    assert not [button for button in settled.button if button.key == "target_find"]
    assert merges(target("perplexity", 1.25)) == "1-3"


def test_the_papers_search_meets_a_target_too(study, no_demo):
    path = kept_path(study, "rdsc")
    path.perplexities = {(): 30.0}
    for step in path.intervals():
        if step.plan.windows:
            path.perplexities[step.plan.windows] = 30.0 + 5.0 * (6 - step.plan.layers_left)
    save_path(study, path)
    depths = sorted({step.plan.layers_left for step in path.intervals()})[:-1]
    for depth in depths:
        windows = ",".join(map(str, path.plan_with_layers(depth).plan.windows))
        assert merges(target("layers", depth, "walk")) == windows
        assert merges(target("perplexity", 1.001 + (6 - depth) / 6, "walk")) == windows
    assert merges(target("layers", 5, "walk")) is None  # no threshold leaves five
    study.save_cost({"layers_ms": 6.0, "rest_ms": 2.0})
    fewer = target("speed", 1.14, "walk")  # 8 / (5 + 2): then one with fewer layers serves
    assert merges(fewer) == ",".join(map(str, path.plan_with_layers(max(depths)).plan.windows))
    assert any(f"no plan with more than {max(depths)} layers" in caption.value for caption in fewer.caption)
    assert any("plan study --speedup 1.14" in code.value for code in fewer.code)


@pytest.mark.parametrize(("kind", "value"), [("layers", 4), ("perplexity", 1.2)])
def test_a_path_without_all_perplexities_is_not_taken_for_searched(kind, value, study, no_demo):
    """As a search leaves it that is cancelled while it measures them."""
    path = kept_path(study, "rdsc")
    path.perplexities = {(): 30.0}
    save_path(study, path)
    test = target(kind, value, "walk")
    assert "finds no such plan" not in texts(test)
    assert test.button(key="target_find").label == "Find the plan"


def test_a_search_that_found_a_plan_with_fewer_layers_is_shown_with_it(study, no_demo):
    """LaCo cannot leave every number of layers; the command took the next one that it can."""
    planned(study, "laco", (Window(1, 3),), 40.0)
    study.save_cost({"layers_ms": 6.0, "rest_ms": 2.0})
    assert merges(target("speed", 1.14, "laco")) is None
    command = ("plan", "study", "--planner", "laco", "--speedup", "1.14")
    study.write_state(State("plan", "done", command=command, **this_process()))
    after = target("speed", 1.14, "laco")
    assert merges(after) == "1-3"
    assert not [button for button in after.button if button.key == "target_find"]


def test_redundancy_outlines_what_preview_showed_last(study, no_demo):
    test = opened("pages/preview.py", threshold="0.7")
    test.selectbox(key="rule").set_value("mean").run()
    test.switch_page("pages/redundancy.py").run()
    assert not outlined(test)  # that rule was not searched
    test.switch_page("pages/preview.py").run()
    test.selectbox(key="rule").set_value("rdsc").run()
    test.switch_page("pages/redundancy.py").run()
    assert outlined(test)


def outlined(test):
    """Solid outlines on the map."""
    return "Solid outlines" in " ".join(caption.value for caption in test.caption)


def test_every_known_plan_is_a_point_and_the_front_is_what_no_other_beats(study, no_demo):
    path = kept_path(study, "rdsc")
    path.perplexities = {(): 30.0, **{step.plan.windows: 90.0 for step in path.intervals() if step.plan.windows}}
    save_path(study, path)
    study.save_cost({"layers_ms": 6.0, "rest_ms": 2.0})
    planned(study, "sleb", (Window(1, 2),), 40.0)
    planned(study, "best", (Window(1, 3),), 35.0, "fit")
    planned(study, "best", (), 30.0, "fit")  # a cell of a study that leaves all layers
    plans = known_plans(study)
    assert [plan.perplexity for plan in plans if plan.method == "original"] == [30.0]
    assert len(plans) == len({plan.windows for plan in (step.plan for step in path.intervals())} - {()}) + 3
    for by, value in ((BY_MEMORY, lambda plan: plan.memory), (BY_SPEED, lambda plan: -plan.speed)):
        marked = with_front(plans, by)
        assert len(marked) == len(plans)
        for plan in marked:
            beaten = any(
                value(other) <= value(plan)
                and other.perplexity <= plan.perplexity
                and (value(other), other.perplexity) != (value(plan), plan.perplexity)
                for other in plans
            )
            assert plan.best != beaten
    charts = [json.loads(chart.proto.spec) for chart in opened("pages/preview.py").get("plotly_chart")]
    (chart,) = [chart for chart in charts if "before healing" in chart["layout"]["yaxis"]["title"]["text"]]
    drawn = [tuple(point[:2]) for trace in chart["data"] for point in trace.get("customdata", [])]
    assert sorted(drawn) == sorted((",".join(map(str, p.plan.windows)), p.plan.rule) for p in plans)


def test_studies_show_methods_by_depth_and_what_cannot_be(study, no_demo):
    test = opened("pages/studies.py")
    assert "This study has no results yet" in texts(test)
    for name, method, layers in (("sleb-5", "sleb", 5), ("rdsc-5", "rdsc", 5)):
        run = study.create_run(name, MergePlan(6, (Window(1, 6 - layers + 1),)), method=method)
        run.remember(merge={"parameters": 800, "size_bytes": 3200})
        run.save("scores", scores(50.0 if method == "sleb" else 60.0, 0.5, 0.6))
        row = {"correct": int(method == "sleb"), "question": "", "right": "", "picked": ""}
        run.save("documents", {"tasks": {"boolq": [{"id": f"{i}", **row} for i in range(40)]}})
    study.save_study("methods", {"failed": {"taylor-5": "No such plan."}, "grid": {}})
    test = opened("pages/studies.py")
    table = test.dataframe[0].value
    assert list(table["method"]) == ["original", "SLEB", "Sliding window (rdsc)"]
    assert json.loads(test.get("plotly_chart")[0].proto.spec)["layout"]["xaxis"]["tickvals"] == [5]  # no half layers
    assert table["average, %"][1].endswith("]")
    assert list(table["difference (points)"]) == ["–", "–", "-100.0 [-100.0, -82.4]"]
    test.selectbox(key="studies_against_study_methods").select("rdsc").run()
    assert list(test.dataframe[0].value["difference (points)"])[1] == "+100.0 [+82.4, +100.0]"
    assert "taylor-5: No such plan." in " ".join(c.value for c in test.caption)
    for kind in ("healing", "width", "thresholds", "texts"):
        test.segmented_control(key="studies_kind").select(kind).run()
        assert not test.exception
        assert KINDS[kind] in test.segmented_control(key="studies_kind").help


def test_studies_show_the_scores_of_plans_at_thresholds(study, no_demo):
    grid = {"rules": ["rdsc"], "from": 0.5, "scored_at": [0.9, 0.8], "limit": 50}
    row = {"rule": "rdsc", "layers": 5, "windows": [[1, 2]], "task": "hellaswag", "limit": 50, "metric": "acc_norm"}
    rows = [{**row, "threshold": t, "value": v, "stderr": 0.07, "documents": 50} for t, v in ((0.9, 0.42), (0.8, 0.35))]
    study.save_study("thresholds", {"failed": {}, "grid": grid, "scores": rows})
    test = opened("pages/studies.py")
    test.segmented_control(key="studies_kind").select("thresholds").run()
    charts = [json.loads(chart.proto.spec) for chart in test.get("plotly_chart")]
    (scored,) = [chart for chart in charts if chart["layout"]["yaxis"]["title"]["text"] == "hellaswag, %"]
    assert (scored["data"][0]["x"], scored["data"][0]["y"]) == ([0.8, 0.9], [35.0, 42.0])
    assert scored["data"][0]["error_y"]["array"] == pytest.approx([13.72, 13.72])  # 1.96 standard errors
    assert any("95 % intervals over 50 documents" in c.value for c in test.caption)
    assert any("scored_at: [0.9, 0.8]" in code.value for code in test.code)  # the grid that was run, not the default


def test_a_path_that_is_computed_in_part_is_shown_as_such(study, no_demo):
    whole = kept_path(study, "rdsc")
    step = next(step for step in whole.intervals() if step.plan.windows)
    part = extended(ThresholdPath(6), lambda *key: whole.similarities[key], layers=step.plan.layers_left)
    assert part.covered() < 0.9
    save_path(study, part)
    test = opened("pages/preview.py")
    assert [option for option in test.selectbox(key="preview_depth").options if option.isdigit()] == [
        str(step.plan.layers_left)
    ]
    test = opened("pages/studies.py")
    test.segmented_control(key="studies_kind").select("thresholds").run()
    chart = json.loads(test.get("plotly_chart")[0].proto.spec)["data"][0]
    assert max(chart["x"]) == step.high
    partly = f"Partly computed: Sliding window (rdsc), {100 * part.covered():.0f} %."
    assert partly in " ".join(c.value for c in test.caption)


def test_a_staircase_is_broken_where_the_plan_is_not_known():
    path = threshold_path(6, lambda above, window: 1 - 0.1 * len(window), 0.5)
    steps = path.intervals()
    keys = [{(trial.committed, trial.window) for trial in step.trace} for step in steps]
    del path.similarities[(keys[2] - keys[0].union(keys[1], *keys[3:])).pop()]
    (line,) = staircase_chart([path], "layers").data
    shown = [step for step in steps if step is not steps[2]]
    assert line.x == (
        shown[0].high,
        shown[0].low,
        shown[1].high,
        shown[1].low,
        None,
        shown[2].high,
        shown[2].low,
        *line.x[7:],
    )
    assert line.x.count(None) == line.y.count(None) == 1


@pytest.mark.parametrize("slope", [0.02, 0.0015])
def test_a_plan_that_is_known_alone_is_a_line_or_where_that_is_too_short_a_dot(slope):
    path = ThresholdPath(6, low=0.7)
    step = path.extend(0.742, lambda above, window: 0.743 - slope * (len(window) - 2))
    (line,) = staircase_chart([path], "layers").data
    assert (line.x, line.y) == ((step.high, step.low), (step.plan.layers_left,) * 2)
    dots = [size for size in line.marker.size if size] if line.mode == "lines+markers" else []
    assert (step.high - step.low < 0.003) == (slope == 0.0015) == bool(dots)


def test_plans_below_the_path_are_drawn_where_they_are_known():
    path = ThresholdPath(6, low=0.7)
    path.extend(0.75, lambda above, window: 1 - 0.1 * len(window))
    (line,) = staircase_chart([path], "layers").data
    below = path.extend(0.55, lambda above, window: 1 - 0.1 * len(window))
    assert staircase_chart([path], "layers").data[0].x == line.x
    (line,) = staircase_chart([path], "layers", [0.55]).data
    assert line.x[-2:] == (below.high, 0.55)


def test_a_cut_in_width_goes_into_the_plan_and_the_command(study, no_demo):
    test = opened("pages/run.py", run="new run", windows="1-3")
    test.number_input(key="run_width").set_value(20.0).run()
    test.selectbox(key="run_width_by").select("taylor")
    test.run()
    assert not test.exception
    assert any("--width 0.2 --width-by taylor" in code.value for code in test.code)


def test_preview_opens_on_the_smallest_plan_that_loses_little_else_on_the_one_that_loses_least(study):
    path = kept_path(study, "rdsc")
    assert opening_threshold(path) == 0.9  # nothing is measured yet
    steps = [step for step in path.intervals() if step.plan.windows]
    path.perplexities = {(): 30.0, **{step.plan.windows: 90.0 for step in steps}, steps[1].plan.windows: 50.0}
    assert path.plan_at(opening_threshold(path)).plan == steps[1].plan
    path.perplexities |= {step.plan.windows: 35.9 for step in steps[:2]}  # within 1.2 times 30
    assert path.plan_at(opening_threshold(path)).plan == min(
        (steps[0].plan, steps[1].plan), key=lambda p: p.layers_left
    )
    save_path(study, path)
    assert opened("pages/preview.py").query_params.get("threshold") in (None, [])  # what it opens on is no choice


def test_the_plan_on_the_slider_can_be_measured_until_it_is(study, no_demo):
    def offered():
        return [
            button.label for button in opened("pages/preview.py", threshold="0.75").button if "Measure" in button.label
        ]

    assert offered() == ["Measure this plan"]
    path = kept_path(study, "rdsc")
    path.perplexities = {(): 30.0, path.plan_at(0.75).plan.windows: 40.0}
    save_path(study, path)
    assert offered() == []


def test_home_names_the_method_beside_the_papers_with_as_many_layers(study, no_demo):
    path = kept_path(study, "rdsc")
    path.perplexities = {(): 30.0, **{step.plan.windows: 90.0 for step in path.intervals() if step.plan.windows}}
    save_path(study, path)
    left = next(step.plan.layers_left for step in path.intervals() if step.plan.windows)
    plan = planned(study, "sleb", (Window(0, 6 - left),), 33.0)
    said = chosen_sentence(study, plan)
    assert "Layers chosen by SLEB" in said
    assert "1.10 times the perplexity" in said
    assert said.endswith("with as many layers: 3.00 times.")
    paper = next(step.plan for step in path.intervals() if step.plan.windows)
    assert chosen_sentence(study, paper).startswith("Layers chosen and merged as in the paper.")
    assert chosen_sentence(study, MergePlan(6, (Window(2, 5),), "mean")) == ""  # never measured


def test_home_says_what_an_experiment_of_ones_own_needs_next(home, no_demo):
    mine = Experiment.create("mine", ExperimentSettings("some-model"), {**FACTS, "dtype": "float32", "width": 8})

    def links():
        test = opened("app.py", experiment="mine")
        assert not test.exception
        return [link.proto.label for link in test.get("page_link")]

    assert "Measure it" in links()
    save_path(mine, threshold_path(6, lambda above, window: 1 - 0.1 * len(window), 0.5))
    assert "Choose layers" in links()


def test_address_holds_experiment_threshold_and_rule(study):
    test = opened("pages/preview.py", experiment="study", threshold="0.7")
    assert test.session_state["preview_threshold"] == 0.7
    assert test.sidebar.selectbox[0].value == "study"


@pytest.mark.parametrize(
    "query", [{"experiment": "../../etc"}, {"experiment": "nope"}, {"threshold": "nan"}, {"rule": "<b>"}, {"run": "x"}]
)
@pytest.mark.parametrize("page", ["pages/preview.py", "pages/run.py"])
def test_odd_addresses_are_survived(page, query):
    test = opened(page, **query)
    assert len(test.title) == 1


@pytest.mark.parametrize("name", ["../up", "Upper", "", "study", "example-demo"])
def test_a_name_that_cannot_be_used_is_told_beside_its_field(name, study):
    test = opened("pages/experiment.py")
    test.text_input(key="experiment_name").set_value(name).run()
    assert len(test.error) == 1
    assert test.button(key="experiment_create").disabled


def facts_of(model, until):
    """What the page shows of a model once it has been read: waits for text or an error."""

    def script(model):
        from pages.shared.new_experiment import model_facts

        model_facts(model, "auto", 640)

    test = AppTest.from_function(script, default_timeout=30, kwargs={"model": str(model)})
    deadline = time.time() + 60
    while until not in texts(test.run()) and time.time() < deadline:
        time.sleep(0.3)
    assert not test.exception
    return texts(test)


def test_what_cannot_be_created_is_told_and_nothing_typed_is_lost(no_demo, home):
    """A name that is free when it is typed, and taken when it is created."""
    test = opened("pages/experiment.py")
    test.text_input(key="experiment_name").set_value("taken").run()
    Experiment.create("taken", ExperimentSettings("m"), {**FACTS, "dtype": "float32", "width": 8})
    test.button(key="experiment_create").click().run(timeout=60)
    assert "already exists" in texts(test)
    assert test.text_input(key="experiment_name").value == "taken"
    assert test.button(key="experiment_create")


def test_what_is_known_of_a_model_is_there_before_it_is_created(model_folder):
    assert "Fits: healing, the largest step, needs" in facts_of(model_folder, "**4 layers**")
    assert facts_of(" ", "Choose a model")


def test_a_texts_beginning_is_shown_and_a_missing_one_told(text_file, no_demo):
    assert any(c.value.startswith("Begins: ") for c in opened("pages/experiment.py").caption)

    def script(text):
        from pages.shared.new_experiment import text_preview

        text_preview(text)

    def told(text):
        test = AppTest.from_function(script, kwargs={"text": str(text)}).run()
        return " ".join(e.value for e in [*test.caption, *test.error])

    empty, binary = text_file.with_name("empty.txt"), text_file.with_name("binary.txt")
    empty.write_text(" \n")
    binary.write_bytes(b"\xff\xfe\x00")
    assert text_file.read_text()[:40] in told(text_file)
    assert "gone.txt" in told(text_file.with_name("gone.txt"))
    assert "is empty" in told(empty)
    assert "decode" in told(binary)
    assert "downloaded when" in told("org/data")


def test_an_experiment_is_copied_and_deleted_on_its_page(study, no_demo):
    test = opened("pages/experiment.py")
    test.text_input(key="copy_name_study").set_value("study").run()
    test.button(key="experiment_copy").click().run()
    assert "already exists" in texts(test)
    test = opened("pages/experiment.py")
    test.text_input(key="copy_name_study").set_value("second").run()
    test.button(key="experiment_copy").click().run()
    assert test.sidebar.selectbox[0].value == "second"
    assert Experiment.open("second").run("first").scores() == study.run("first").scores()
    test = opened("pages/experiment.py", experiment="second")
    test.button(key="experiment_delete").click().run()
    assert not (study.folder.parent / "second").exists()
    assert study.is_there()


def test_a_run_is_deleted_on_its_page(study, no_demo):
    test = opened("pages/run.py", run="first")
    test.button(key="run_delete").click().run()
    assert not test.exception
    assert [run.name for run in study.runs()] == ["baseline"]


def test_a_bar_is_full_only_when_the_job_has_ended(study, no_demo):
    now = time.time()
    running = State("search", "running", 1000, 1000, "done almost", started=now, heartbeat=now, pid=os.getpid())
    study.write_state(replace(running, **this_process()))
    test = opened("pages/preview.py")
    bars = [bar.proto.value for bar in test.get("progress")]
    assert bars
    assert max(bars) == 99
    study.write_state(replace(running, total=0, **this_process()))
    assert not opened("pages/preview.py").get("progress")


@pytest.mark.parametrize(
    ("page", "key", "value"),
    [
        ("preview", "rule", "fit"),
        ("preview", "rule", "keep_last"),
        ("preview", "preview_door", "target"),
        ("redundancy", "redundancy_metric", "angular"),
        ("redundancy", "redundancy_other", "the same with the first tokens"),
        ("redundancy", "redundancy_run", "none"),
        ("redundancy", "redundancy_contrast", "logarithmic"),
        ("redundancy", "redundancy_part", "update"),
        ("redundancy", "redundancy_text", "task:boolq"),
        ("compare", "compare_score", "bits_per_byte"),
        ("studies", "studies_kind", "texts"),
    ],
)
def test_a_choice_comes_back_from_the_address_by_its_name(study, no_demo, page, key, value):
    test = opened(f"pages/{page}.py", **{key: value})
    assert test.session_state[key] == value
    assert test.query_params[key] in (value, [value])


def test_a_target_comes_back_from_the_address(study, no_demo):
    asked = {"preview_door": "target", "target_kind": "speed", "target_method": "sleb"}
    test = opened("pages/preview.py", **asked)
    assert {key: test.session_state[key] for key in asked} == asked


def test_how_thoroughly_becomes_numbers(no_demo):
    test = opened("pages/experiment.py")
    said = []
    for effort in ("quick", "standard", "thorough", "own"):
        test.selectbox(key="experiment_effort").set_value(effort).run()
        said.append(next(code.value for code in test.code if " create " in code.value))
    for command, numbers in zip(
        said, ("5 --length 64", "10 --length 128", "50 --length 256", "10 --length 128"), strict=True
    ):
        assert f"--count {numbers} --seed 1234" in command


def test_a_number_out_of_range_says_so_and_which_one_counts(no_demo):
    test = opened("pages/experiment.py", experiment_effort="own")
    test.number_input(key="experiment_count").set_value(-5).run()
    assert "-5 is out of range: 1 to 100,000. 1 is used." in texts(test)
    assert any("--count 1 " in code.value for code in test.code)
    test.number_input(key="experiment_count").set_value(7).run()
    assert "out of range" not in texts(test)
    assert any("--count 7 " in code.value for code in test.code)


def test_a_model_that_does_not_work_cannot_be_created(no_demo, tmp_path, model_folder):
    test = opened("pages/experiment.py", experiment_typed=str(tmp_path / "nothing"))
    assert wait_for(lambda: test.run() and "nothing" in " ".join(error.value for error in test.error), 60)
    assert test.run().button(key="experiment_create").disabled
    test.text_input(key="experiment_typed").set_value(str(model_folder)).run()
    assert wait_for(lambda: not test.run().button(key="experiment_create").disabled, 60)


def test_what_is_entered_for_a_run_stays_when_the_page_is_left(study, no_demo):
    test = opened("pages/run.py", run="new run", windows="1-3")
    test.text_input(key="run_name").set_value("small")
    test.number_input(key="run_steps_quick").set_value(77)
    test.number_input(key="run_limit").set_value(33).run()
    test.switch_page("pages/compare.py").run()
    test.query_params.clear()
    test.switch_page("pages/run.py").run()
    test.selectbox(key="run").set_value("new run").run()
    assert test.text_input(key="run_windows").value == "1-3"
    assert test.text_input(key="run_name").value == "small"
    assert (test.number_input(key="run_steps_quick").value, test.number_input(key="run_limit").value) == (77, 33)
    test.query_params["windows"] = "2-4"
    test.run()
    assert test.text_input(key="run_windows").value == "2-4"
    assert test.number_input(key="run_steps_quick").value == 77


def test_the_address_carries_the_form_of_a_run(study, no_demo):
    test = opened("pages/run.py", run="new run")
    test.number_input(key="run_steps_quick").set_value(77)
    test.number_input(key="run_width").set_value(20.0)
    test.selectbox(key="run_rule").set_value("mean")
    test.text_input(key="run_windows").set_value("2-3").run()
    link = {name: value if isinstance(value, str) else value[0] for name, value in test.query_params.items()}
    fields = {"run_steps_quick": "77", "run_width": "20.0"}
    fields |= {"windows": "2-3", "merge_by": "mean"}
    assert fields.items() <= link.items()
    assert {name for name in link if name.startswith("run_")} <= set(fields)  # defaults are not in it
    other = opened("pages/run.py", **link)
    assert not other.exception
    assert other.number_input(key="run_steps_quick").value == 77
    assert (other.number_input(key="run_width").value, other.selectbox(key="run_rule").value) == (20.0, "mean")
    assert other.text_input(key="run_windows").value == "2-3"


def test_without_healing_the_form_says_so_and_offers_none_of_its_settings(study, no_demo):
    test = opened("pages/run.py", run="new run", windows="1-3", run_recover="False")
    assert not test.toggle(key="run_recover").value
    assert test.button(key="run_start").label == "Merge and evaluate"
    assert not [field for field in test.number_input if field.key.startswith("run_steps")]
    assert any("--no-recovery" in code.value for code in test.code)
    test.toggle(key="run_recover").set_value(True).run()
    assert test.button(key="run_start").label == "Merge, heal and evaluate"
    assert [field for field in test.number_input if field.key.startswith("run_steps")]


def test_a_run_that_was_started_without_healing_is_not_healed_by_the_remaining_steps(study, no_demo, monkeypatch):
    started = []
    monkeypatch.setattr("pages.shared.run_controls.start", lambda run, stage, arguments: started.append(arguments))
    run = study.run("first")
    run.remember(unhealed=True)
    run.write_state(State("evaluate", "cancelled", command=("evaluate", "study", "first")))  # the wish outlives it
    test = opened("pages/run.py", run="first")
    assert "Heal with LoRA" not in " ".join(m.value for m in test.markdown)
    test.button(key="run_do_Run the remaining steps").click().run()
    assert "--no-recovery" in started[0]
    run.remember(unhealed=False)
    test = opened("pages/run.py", run="first")
    assert "Heal with LoRA" in " ".join(m.value for m in test.markdown)
    test.button(key="run_do_Run the remaining steps").click().run()
    assert "--no-recovery" not in started[1]


@pytest.mark.parametrize("name", ["run_steps_quick", "run_width", "run_recover", "run_repair_quick", "merge_by"])
@pytest.mark.parametrize("value", ["", "x", "-1e999", "nan", "\u0000"])
def test_nonsense_in_the_address_of_a_form_does_not_break_it(name, value, study, no_demo):
    test = opened("pages/run.py", run="new run", windows="1-3", **{name: value})
    assert not test.exception
    assert test.button(key="run_start")


def test_a_duplicated_run_is_not_overruled_by_the_form_s_old_address(study, no_demo):
    recovery = {**asdict(PRESETS["quick"]), "steps": 77}
    study.run("first").remember(recovery={**recovery, "trained_parameters": 1, "seconds": 1})
    test = opened("pages/run.py", run="new run", run_steps_quick="5")
    assert test.number_input(key="run_steps_quick").value == 5
    test.selectbox(key="run").set_value("first").run()
    test.button(key="run_duplicate").click().run()
    assert test.number_input(key="run_steps_quick").value == 77


def test_new_run_with_windows_that_do_not_fit_is_told(study, no_demo):
    test = opened("pages/run.py", run="new run")
    test.text_input(key="run_windows").set_value("4-9")
    test.button[0].click().run()
    assert "Window 4-9 does not fit" in texts(test)


def test_new_run_at_a_threshold_that_was_not_searched_is_told(study, no_demo):
    test = opened("pages/run.py", run="new run", merge_at="0.2")
    assert test.number_input(key="run_threshold").value == 0.2
    test.selectbox(key="run_rule").set_value("mean")
    test.button[0].click().run()
    assert "has not been searched with rule mean" in texts(test)


def test_new_run_says_what_it_needs_and_refuses_what_cannot_fit(study, no_demo, monkeypatch):
    study.save_cost(
        {"layers_ms": 8.0, "rest_ms": 2.0, "forward_tokens_per_second": 900.0, "training_tokens_per_second": 900.0}
    )
    said = lambda test: " ".join(c.value for c in test.caption)  # noqa: E731
    test = opened("pages/run.py", run="new run", windows="1-3")
    assert "of memory" in said(test)
    assert "heal" in said(test)
    assert not test.button(key="run_start").disabled
    monkeypatch.setattr("swm.workspace.estimate.PROCESS_BYTES", 2**50)
    test = opened("pages/run.py", run="new run", windows="1-3")
    assert "Not enough memory: about 1,048,576.0 GiB needed" in texts(test)
    assert test.button(key="run_start").disabled


def test_a_read_only_example_says_what_a_run_would_need():
    test = opened("pages/run.py", experiment="example-demo", run="new run", windows="1-2")
    said = " ".join(c.value for c in test.caption)
    assert "of memory" in said
    assert "read-only" in said
    assert test.button(key="run_start").disabled


def test_a_run_is_duplicated_with_its_settings(study, no_demo):
    recovery = {**asdict(PRESETS["standard"]), "steps": 77, "rank": 5, "target": "original", "adapt": "near"}
    study.run("first").remember(recovery={**recovery, "trained_parameters": 1, "seconds": 1})
    test = opened("pages/run.py", run="first")
    test.button(key="run_duplicate").click().run()
    assert not test.exception
    assert test.selectbox(key="run").value == "new run"
    assert test.text_input(key="run_windows").value == "1-3"
    assert test.selectbox(key="run_preset").value == "standard"
    assert test.number_input(key="run_steps_standard").value == 77
    assert test.number_input(key="run_rank_standard").value == 5
    assert test.selectbox(key="run_target_standard").value == "original"
    assert test.selectbox(key="run_adapt_standard").value == "near"
    assert test.number_input(key="run_limit").value == 40


@pytest.mark.parametrize(
    ("of_run", "of_original", "offered"), [(None, None, None), (None, 300, 300), (7, 300, 7), (7, None, 7)]
)
def test_a_duplicate_is_evaluated_on_as_many_documents(study, no_demo, of_run, of_original, offered):
    for run, limit in ((study.run("first"), of_run), (study.run("baseline"), of_original)):
        run.save("scores", {**run.scores(), "limit": limit})
    test = opened("pages/run.py", run="first")
    test.button(key="run_duplicate").click().run()
    if offered is None:
        assert "Evaluates all documents of each task" in " ".join(caption.value for caption in test.caption)
    else:
        assert test.number_input(key="run_limit").value == offered


def test_a_run_without_healing_is_duplicated_without(study, no_demo):
    test = opened("pages/run.py", run="first")
    test.button(key="run_duplicate").click().run()
    assert not test.toggle(key="run_recover").value


def test_an_unfinished_recovery_says_what_can_be_used(study, no_demo):
    run = study.run("first")
    run.remember(recovery_started=asdict(PRESETS["quick"]))
    assert "first checkpoint and has to start over" in texts(opened("pages/run.py", run="first"))
    checkpoint = run.folder / "recovery" / "checkpoint-30"
    checkpoint.mkdir(parents=True)
    (checkpoint / "trainer_state.json").write_text("{}")
    assert "step 30 of 120" in texts(opened("pages/run.py", run="first"))
    assert "complete merged model, which you can use" in texts(opened("pages/run.py", run="first"))


@pytest.mark.parametrize("page", ["app.py", *PAGES])
def test_a_demo_shows_its_experiment_and_changes_nothing(page, study, no_demo, monkeypatch):
    Experiment.create("another", ExperimentSettings("some-model"), study.model_facts)
    monkeypatch.setenv("SWM_DEMO", "study")
    test = opened(page)
    assert test.sidebar.selectbox[0].value == "study"
    assert [button.label for button in test.button if not button.disabled] == []
    said = texts(test) if page == "app.py" else " ".join(caption.value for caption in test.caption)
    assert ("study" if page == "app.py" else "read-only demo") in said


def test_compare_takes_runs_from_the_address_once(study, no_demo):
    test = opened("pages/compare.py", experiments="study", runs="first (merged)")
    assert test.multiselect[1].value == ["first (merged)"]
    other = Experiment.create("other", ExperimentSettings("some-model"), study.model_facts)
    other.run("baseline").save("scores", scores(20.0, 0.6, 0.8))
    test.run()
    test.sidebar.selectbox[0].set_value("other").run()
    assert test.multiselect[0].value == ["other"]
    assert test.multiselect[1].value == ["original"]


def with_control(study):
    """The run healed, and its control, with answers that keep their log-likelihoods."""
    first = study.run("first")
    first.discard_scores("aside")
    control = study.create_run("control", MergePlan(6))
    control.remember(merge={"parameters": 1000, "size_bytes": 4000})
    for run in (first, control):
        run.remember(recovery={**asdict(PRESETS["quick"]), "trained_parameters": 5, "seconds": 60.0})
    for run, right in ((study.run("baseline"), 10), (first, 18), (control, 30)):
        scored(run, right)


def test_a_healed_run_is_judged_against_its_control_wherever_it_stands(study, no_demo):
    with_control(study)
    sentence = "Compared with the original healed in the same way"
    for page in ("app.py", "pages/compare.py"):
        test = opened(page)
        assert sentence in texts(test), page
        # Bonett and Price: 12 of 40 lost in each of two tasks, 1.96 sqrt(2) sqrt(13 - 12^2 / 42) / 42 / 2 = 0.102
        assert re.search(r"about 30(\.0)? fewer right \[(19\.8|20), 40(\.2)?\]", texts(test).replace("\\", "")), page
    metrics = {metric.label.split(" (")[0]: metric.delta for metric in test.metric}
    assert metrics["Accuracy"] == "-30.0 [-40.2, -19.8] points"
    assert metrics["Probability of the right choice"].startswith("-0.")
    assert "healed in the same way" in opened("pages/report.py").get("iframe")[0].proto.srcdoc
    test = opened("pages/compare.py")
    assert (test.selectbox(key="compare_first").value, test.selectbox(key="compare_second").value) == (
        "control (original + LoRA)",
        "first (merged + LoRA)",
    )
    tables = {tuple(table.value.columns)[1]: table.value for table in test.dataframe}
    assert tables["difference (points)"]["difference (points)"].iloc[-1] == "-30.0"
    test.segmented_control(key="compare_score").set_value("choice_logprob").run()
    assert not test.exception
    tables = {tuple(table.value.columns)[1]: table.value for table in test.dataframe}
    assert {*tables["difference (nats)"]["verdict"]} == {"worse"}


def test_a_control_is_offered_once(study, no_demo, monkeypatch):
    started = []
    monkeypatch.setattr("pages.shared.control.start", lambda *arguments: started.append(arguments))
    test = opened("pages/run.py", run="first")
    assert "run_control" not in [button.key for button in test.button]  # not healed
    with_control(study)
    study.run("control").remember(recovery={**study.run("control").settings["recovery"], "seed": 5})
    test = opened("pages/run.py", run="first")
    assert test.button(key="run_control").label == "Heal the original in the same way (control)"
    test.button(key="run_control").click().run()
    assert not test.exception
    ((target, stage, arguments),) = started
    assert (target.name, stage, arguments) == ("control-2", "control", ["control", "study", "first"])
    assert test.selectbox(key="run").value == "control-2"
    study.run("control").remember(recovery=study.run("first").settings["recovery"])
    test = opened("pages/run.py", run="first")
    assert "run_control" not in [button.key for button in test.button]
    assert "Its control is run control" in " ".join(caption.value for caption in test.caption)
    assert "run_control" not in [button.key for button in opened("pages/run.py", run="control").button]


def test_windows_by_hand_stay_with_their_experiment(study, no_demo):
    Experiment.create("smaller", ExperimentSettings("some-model"), {**study.model_facts, "layers": 3})
    test = opened("pages/preview.py", experiment="study")
    test.session_state["preview_windows_study"] = "4-5"
    test.run()
    assert not test.error
    test.sidebar.selectbox[0].set_value("smaller").run()
    assert not test.error
    assert not test.exception


def test_a_depth_is_carried_to_the_run_page_as_the_very_same_plan():
    demo = Experiment.open("demo")
    path = kept_path(demo, "rdsc")
    for step in path.intervals():
        assert path.plan_at(float(str(step.high))).plan == step.plan  # as the address holds it


def test_errors_in_what_follows_a_job_are_shown_kindly(study, no_demo):
    (study.folder / "runs" / "first" / "events.jsonl").write_text('{"step": 1}\n')
    test = opened("pages/run.py", run="first")
    assert not test.error
    state = {"stage": "run", "status": "running", "pid": 1, "host": "elsewhere", "heartbeat": time.time()}
    study.run("first").write_state(State(**state))
    test = opened("pages/run.py", run="first")
    next(button for button in test.button if button.label == "Cancel").click().run()
    assert not test.exception
    assert "Cancel it there" in texts(test)


def test_the_tour_greets_only_those_who_have_nothing_of_their_own(home, model_folder, text_file):
    test = opened("app.py")
    assert test.button(key="home_tour").proto.type == "primary"
    assert any("New here?" in text.value for text in test.markdown)
    create_experiment("mine", ExperimentSettings(str(model_folder), str(text_file), 3, 32))
    test = opened("app.py")
    assert test.button(key="home_tour").proto.type == "secondary"
    assert not any("New here?" in text.value for text in test.markdown)


def test_studies_open_on_one_that_was_made_also_after_another_experiment_is_chosen():
    test = opened("pages/studies.py", experiment="example-healing")
    for example, kind in (("example-methods", "methods"), ("example-healing", "healing"), ("example-study", "methods")):
        test.sidebar.selectbox(key="experiment").select(example).run()
        assert test.segmented_control(key="studies_kind").value == kind
        assert "no results yet" not in texts(test)
    test.segmented_control(key="studies_kind").select("texts").run()
    test.sidebar.selectbox(key="experiment").select("example-demo").run()  # has none
    assert test.segmented_control(key="studies_kind").value == "methods"
    asked = opened("pages/studies.py", experiment="example-healing", studies_kind="thresholds")
    assert asked.segmented_control(key="studies_kind").value == "thresholds"


def test_studies_show_what_each_method_keeps_and_gives_up(study, no_demo):
    study.run("baseline").save("abilities", ability_answers(facts=[1.0, 1.1, 0.9], reading=[1.0, 1.0, 1.2]))
    for method, windows, facts in (("sleb", (Window(1, 2),), 1.2), ("random", (Window(2, 3),), 1.9)):
        run = study.create_run(f"{method}-5", MergePlan(6, windows, "keep_first"), method=method)
        run.remember(merge={"parameters": 90, "size_bytes": 360})
        run.save("scores", scores(30.0, 0.5, 0.5))
        run.save("abilities", ability_answers(facts=[facts, facts + 0.1, facts - 0.1], reading=[1.5, 1.5, 1.7]))
    grid = {"planners": ["sleb", "random"], "rules": [], "ratios": [0.17], "tasks": "none", "heal": [], "limit": 3}
    grid |= {
        "keep_models": False,
        "abilities": "facts,reading",
        "requests": 3,
        "recovery": {"preset": "quick"},
        "time": False,
    }
    study.save_study("abilities", {"grid": grid, "failed": {}})
    test = opened("pages/studies.py", experiment="study", studies_kind="abilities")
    assert "What each method keeps and gives up" in [head.value for head in test.subheader]
    assert any("With 5 layers, SLEB keeps most: +33 %" in text.value for text in test.markdown)
    (csv,) = [button for button in test.get("download_button") if "abilities" in button.proto.label]
    assert csv


@pytest.mark.parametrize("example", sorted(path.name for path in (ROOT / "assets" / "experiments").glob("example-*")))
def test_every_example_has_a_verdict_a_map_and_a_path(example):
    home = opened("app.py", experiment=example)
    assert not home.exception
    assert "layers, " in texts(home)
    assert "not been measured yet" not in texts(opened("pages/redundancy.py", experiment=example))
    assert "not been searched yet" not in texts(opened("pages/preview.py", experiment=example))


def test_a_run_of_the_experiment_before_is_not_taken_for_a_link(study, no_demo):
    other = Experiment.create("other", study.settings, {**FACTS, "dtype": "float32", "width": 8})
    test = opened("pages/run.py", experiment="study", run="first")
    test.sidebar.selectbox[0].set_value(other.name).run()
    assert not test.exception
    assert "but there is no such run" not in texts(test)


def test_a_link_to_nothing_keeps_the_experiment_that_was_shown(study, no_demo):
    Experiment.create("other", study.settings, {**FACTS, "dtype": "float32", "width": 8})
    test = opened("pages/redundancy.py", experiment="study")
    test.query_params["experiment"] = "gone"
    test.run()
    assert test.sidebar.selectbox[0].value == "study"
    assert "There is no experiment named gone. This is study." in texts(test)


def test_a_click_that_carries_the_address_before_the_last_change_is_no_link(study, no_demo):
    Experiment.create("other", study.settings, {**FACTS, "dtype": "float32", "width": 8})
    test = opened("pages/redundancy.py", experiment="study")
    test.sidebar.selectbox[0].set_value("other").run()
    test.query_params["experiment"] = "study"  # sent before the browser had the new address
    test.run()
    assert test.sidebar.selectbox[0].value == "other"
    test.session_state["experiment_left"] = ("study", 0.0)  # a second later
    test.query_params["experiment"] = "study"  # the browser's Back
    test.run()
    assert test.sidebar.selectbox[0].value == "study"


def test_the_abilities_of_the_demo_are_told_in_a_sentence_that_its_file_bears_out():
    test = opened("pages/abilities.py", experiment="example-demo")
    (sentence,) = [each.value for each in test.markdown if each.value.startswith("**Layers ")]
    first, last, needed, spared = re.match(
        r"\*\*Layers (\d+)-(\d+) carry (.+) \(.* and are hardly needed for (.+) \(", sentence
    ).groups()
    entries = Experiment.open("example-demo").read("abilities.json")["abilities"]
    rises = {}
    for name in (needed, spared):
        scores = entries[name]["scores"]
        original = sum(scores["original"]["bits"])
        rises[name] = [sum(scores[f"{layer}"]["bits"]) / original - 1 for layer in range(int(first), int(last) + 1)]
    assert max(rises[spared]) < min(rises[needed]) / 3
    assert max(rises[spared]) < 0.15
    (figure,) = test.get("plotly_chart")
    heat = json.loads(figure.proto.spec)["data"][0]
    assert len(heat["y"]) >= 12


def test_preview_finds_the_plan_that_keeps_an_ability_and_says_what_it_gives_up(study):
    rises = {"facts": {"value": 0.02, "low": -0.01, "high": 0.05}, "reading": {"value": 0.4, "low": 0.3, "high": 0.5}}
    numbers = {"similarity": 0.5, "perplexity": 9.0, "perplexity_original": 8.0, "seconds": 1.0}
    plan = MergePlan(6, (Window(2, 3),), "keep_first")
    kept = {"keep": "facts=1", "kept": rises, "planner": "sleb", "version": 3}
    study.save_planned("sleb", 5, {**plan.to_dict(), **numbers, **kept})
    query = {"experiment": "study", "preview_door": "target", "target_method": "sleb", "target_layers_study": "5"}
    test = opened("pages/preview.py", **query)
    assert not any("Chosen to keep" in each.value for each in test.markdown)
    (keep,) = [each for each in test.multiselect if each.label == "Keep"]
    keep.set_value(["facts"]).run()
    said = " ".join(each.value for each in test.markdown).replace("\\", "")
    assert "Chosen to keep facts +2 % [-1, +5] bits" in said
    assert "gives up most of reading +40 % [+30, +50]" in said


def test_pages_say_what_a_run_keeps_and_what_it_loses(study):
    assert not any("keeps and what it loses" in each.value for each in opened("pages/compare.py").subheader)
    same = [1.0, 1.1, 0.9]
    study.run("baseline").save("abilities", ability_answers(facts=same, reading=same))
    study.run("first").save("abilities", ability_answers(facts=[1.01, 1.09, 0.9], reading=[1.5, 1.7, 1.3]))
    test = opened("pages/compare.py", experiment="study")
    assert any("keeps and what it loses" in each.value for each in test.subheader)
    said = " ".join(each.value for each in test.markdown).replace("\\", "")
    words = r"Against the original, it keeps facts \(\+0 % \[.*\]\), loses reading: \+50 % \[[^;]*\] bits\."
    assert re.search(f"first.* {words}", said)
    for name in ("baseline", "first"):
        run = study.run(name)
        run.save("scores", {**run.scores(), "samples": [{"prompt": "The", "answer": f" {name}"}]})
    recorded = opened("pages/playground.py", experiment="study", playground_mode="recorded")
    captions = [each.value.replace("\\", "") for each in recorded.caption]
    assert len([each for each in captions if re.fullmatch(words, each)]) == 1
