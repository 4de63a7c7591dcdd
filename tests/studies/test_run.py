"""Tests of swm.studies.run."""

import pytest
from transformers import AutoModelForCausalLM

from swm.errors import Cancelled, PlanError, SettingsError
from swm.evaluation.tasks import zero_shot
from swm.merging.apply import apply_plan
from swm.models.decoder import find_decoder, parameter_count
from swm.plan import MergePlan, Window
from swm.reporting.study_charts import staircase_chart
from swm.search.kept_path import kept_path
from swm.settings import ExperimentSettings
from swm.stages import recover
from swm.stages.create import create_experiment
from swm.stages.loading import load_original
from swm.stages.merge import merge_run
from swm.stages.plan import plan_for
from swm.stages.plan_by import plan_by
from swm.stages.run import run_pipeline
from swm.stages.search import search_path
from swm.stages.time import NEW_TOKENS, time_run
from swm.studies import run as run_module
from swm.studies.grid_files import grid_of
from swm.studies.grids import ThresholdGrid
from swm.studies.rows import study_rows
from swm.studies.run import run_study
from tests.conftest import tiny_model
from tests.studies.run_cases import SMALL


@pytest.fixture
def made(monkeypatch):
    """What the study asked of the stages, in order."""
    asked = []
    for name in ("merge_run", "evaluate_run", "recover_run", "time_run"):
        place = recover if name == "recover_run" else run_module
        whole = getattr(place, name)

        def told(run, *arguments, name=name, whole=whole, **named):
            asked.append((name, run.name, run.stage))
            return whole(run, *arguments, **named)

        monkeypatch.setattr(place, name, told)
    return asked


def test_a_method_healed_with_two_seeds(experiment, made):
    grid = {**SMALL, "ratios": [0.25], "planners": ["sleb"], "rules": []}
    run_study(experiment, "healing", grid)
    made.clear()
    run_study(experiment, "healing", {**grid, "seeds": [1234, 2]})  # the first is there
    assert [(name, run) for name, run, _ in made] == [
        *((name, "control-4-seed-2") for name in ("merge_run", "recover_run", "evaluate_run")),
        *((name, "sleb-3-seed-2") for name in ("merge_run", "evaluate_run", "recover_run", "evaluate_run")),
    ]
    rows = {row.stage: row for row in study_rows(experiment) if row.method == "sleb"}
    assert (rows["merged"].seeds, rows["recovered"].seeds) == ((), (1234, 2))
    values = [experiment.run(name).scores()["perplexity"]["lambada"]["value"] for name in ("sleb-3", "sleb-3-seed-2")]
    assert values[0] != values[1]
    assert rows["recovered"].perplexity == pytest.approx((values[0] * values[1]) ** 0.5)
    made.clear()
    run_study(experiment, "healing", {**grid, "seeds": [2, 1234]})
    assert made == []


def test_a_study_computes_each_cell_once_whenever_it_is_stopped(experiment, made, monkeypatch):
    stop_after = 1
    whole = run_module.evaluate_run

    def stopped(run, *arguments):
        if len([one for one in made if one[0] == "evaluate_run"]) == stop_after:
            raise Cancelled
        return whole(run, *arguments)

    monkeypatch.setattr(run_module, "evaluate_run", stopped)
    passes = 0
    while True:
        passes += 1
        try:
            failed = run_study(experiment, "methods", SMALL)
            break
        except Cancelled:
            stop_after += 1
    assert passes == 10 - len(failed)  # the original, the control, six cells, two of them healed
    assert len(made) == len(set(made))
    assert [one for one in made if one[0] == "evaluate_run" and one[2] == "recovered"] == [
        ("evaluate_run", "control-4", "recovered"),
        ("evaluate_run", "sleb-3", "recovered"),
        ("evaluate_run", "sleb-2", "recovered"),
    ]
    assert set(failed) <= {"keep-first-3", "keep-first-2"}
    rows = study_rows(experiment)
    assert rows[0].method == "original"
    assert {(row.method, row.layers, row.stage) for row in rows} >= {
        ("sleb", 3, "merged"), ("sleb", 3, "recovered"), ("random", 2, "merged"), ("sleb", 2, "recovered"),
    }  # fmt: skip
    assert not any(run.has_model for run in experiment.runs())
    made.clear()
    run_study(experiment, "methods", SMALL)
    assert made == []


def test_another_grid_makes_what_it_needs_again(experiment, made):
    grid = {**SMALL, "ratios": [0.25], "planners": ["sleb"], "rules": []}
    run_study(experiment, "methods", grid)
    made.clear()
    run_study(experiment, "methods", {**grid, "limit": 4})
    assert [name for name, run, _ in made if run == "sleb-3"] == [
        "merge_run",
        "evaluate_run",
        "recover_run",
        "evaluate_run",
    ]
    run = experiment.run("sleb-3")
    assert (run.scores()["limit"], run.scores_before_recovery()["limit"]) == (4, 4)
    made.clear()
    run_study(experiment, "methods", {**grid, "limit": 4, "heal": []})  # what is healed stays healed
    assert made == []
    more = {**SMALL["recovery"], "steps": 3}
    run_study(experiment, "methods", {**grid, "limit": 4, "recovery": more})
    assert experiment.run("sleb-3").settings["recovery"]["steps"] == 3
    made.clear()
    experiment.create_run("sleb-2", MergePlan(4, (Window(0, 1), Window(2, 3)), "keep_first"))
    failed = run_study(experiment, "methods", {**grid, "limit": 4, "recovery": more, "ratios": [0.25, 0.5]})
    assert list(failed) == ["sleb-2"]
    assert "already exists, but not from a study" in failed["sleb-2"]
    made.clear()
    run_study(experiment, "methods", {**grid, "limit": 4, "heal": [], "planners": ["random"], "keep_models": True})
    assert [name for name, _, _ in made] == ["merge_run", "evaluate_run"]
    assert experiment.run("random-3").has_model


def test_a_study_of_all_kinds_in_any_order(experiment):
    small = {**SMALL, "ratios": [0.25], "planners": ["sleb"], "rules": []}
    for heal, time in ((["sleb"], False), ([], True), (["sleb"], False)):
        assert run_study(experiment, "methods", {**small, "heal": heal, "time": time}) == {}
    assert experiment.run("sleb-3").timing()


def test_speed_is_measured_once_for_each_shape(experiment, made):
    run_study(experiment, "methods", {**SMALL, "time": True})
    timed = [run for name, run, _ in made if name == "time_run"]
    assert [run.split("-")[-1] for run in timed] == ["baseline", "3", "2"]
    rows = {row.run: row for row in study_rows(experiment)}
    other = "random-3" if timed[1] == "sleb-3" else "sleb-3"
    assert experiment.run(other).timing()["timed_as"] == timed[1]
    for what in ("speedup", "latency_ms", "peak_memory_bytes", "throughput"):
        assert getattr(rows[other], what) == getattr(rows[timed[1]], what) is not None
    assert rows[other].deltas["latency_ms"] == rows[timed[1]].deltas["latency_ms"]
    made.clear()
    run_study(experiment, "methods", {**SMALL, "time": True})
    assert made == []


def test_runs_of_one_shape_share_their_measurement_as_they_are_run(experiment):
    for name, window in {"one": (0, 1), "other": (1, 2), "smaller": (0, 2)}.items():
        run = experiment.create_run(name, MergePlan(4, (Window(*window),), "keep_first"))
        run_pipeline(run, 2, None, lambda done, total, text: None)
    timings = {name: experiment.run(name).timing() for name in ("one", "other", "smaller")}
    assert timings["other"] == {**timings["one"], "timed_as": "one"}
    assert not {"timed_as"} & ({*timings["one"]} | {*timings["smaller"]})


def test_speed_that_a_user_measured_otherwise_is_not_taken_over(experiment, made):
    plan = MergePlan(4, (Window(0, 1),), "keep_first")
    run = experiment.create_run("mine", plan)
    merge_run(run)
    time_run(run, 3)
    grid = {**SMALL, "ratios": [0.25], "planners": ["sleb"], "rules": [], "heal": [], "time": True}
    run_study(experiment, "methods", grid)
    assert ("time_run", "sleb-3", "merged") in made
    assert experiment.run("sleb-3").timing()["new_tokens"] == NEW_TOKENS


@pytest.mark.parametrize(
    ("kind", "grid", "change"),
    [
        ("thresholds", {"rules": ["mean"], "scored_at": [0.9], "task": "piqa", "limit": 2}, {"task": "chess"}),
        ("methods", {**SMALL, "ratios": [0.25], "planners": [], "heal": [], "limit": 2}, {"tasks": "piqa,chess"}),
    ],
)
def test_a_grid_with_an_unknown_task_does_not_take_the_place_of_the_last(experiment, kind, grid, change):
    assert run_study(experiment, kind, grid) == {}
    with pytest.raises(SettingsError, match="Unknown task 'chess'"):
        run_study(experiment, kind, {**grid, **change})
    assert grid_of(experiment, kind) == grid


def test_a_method_that_finds_no_plan_is_told_of(experiment):
    grid = {**SMALL, "ratios": [0.25], "planners": ["taylor", "random"], "rules": [], "heal": []}
    failed = run_study(experiment, "methods", grid)
    assert list(failed) == ["taylor-3"]
    assert "at most" in failed["taylor-3"]
    assert experiment.study("methods")["failed"] == failed
    assert experiment.run("random-3").is_evaluated


def test_thresholds_and_texts(experiment, text_file):
    assert run_study(experiment, "thresholds", {"rules": ["keep_first", "mean"], "from": 0.9}) == {}
    assert experiment.rules_searched() == ["keep_first", "mean"]
    told = []
    grid = {"metric": "cosine", "texts": [str(text_file)]}
    run_study(experiment, "texts", grid, lambda done, total, text: told.append(done / total))
    assert len(experiment.metrics_measured()) == 1
    assert told == sorted(told)
    assert told[-1] <= 1


def test_thresholds_alone_without_the_whole_paths(experiment, monkeypatch):
    loads = []
    monkeypatch.setattr(run_module, "load_original", lambda one: loads.append(one) or load_original(one))
    monkeypatch.setattr(run_module, "search_path", None)  # of whole paths
    grid = {"rules": ["keep_first", "mean", "fit"], "scored_at": [0.99, 0.8, 0.4], "task": "piqa", "limit": 4}
    assert run_study(experiment, "thresholds", grid) == {}
    assert len(loads) == 1
    rows = experiment.study("thresholds")["scores"]
    assert [(row["rule"], row["threshold"]) for row in rows] == [
        (rule, threshold) for rule in grid["rules"] for threshold in grid["scored_at"]
    ]
    for rule in grid["rules"]:
        path = kept_path(experiment, rule)
        steps = [path.plan_at(threshold) for threshold in grid["scored_at"]]
        assert [step.plan.layers_left for step in steps] == [row["layers"] for row in rows if row["rule"] == rule]
        assert all(step.perplexity for step in steps)
        (line,) = staircase_chart([path], "layers", grid["scored_at"]).data
        assert {max(step.low, 0.4) for step in steps} <= {*line.x}
    found = [kept_path(experiment, "mean").plan_at(threshold).plan for threshold in grid["scored_at"]]
    assert run_study(experiment, "thresholds", grid) == {}
    assert len(loads) == 1  # nothing is left to do
    whole = search_path(experiment, "mean")
    assert [whole.plan_at(threshold).plan for threshold in grid["scored_at"]] == found


def test_a_threshold_that_fails_is_told_of_and_the_others_are_scored(experiment, monkeypatch):
    def planned(experiment, *, threshold, **named):
        if threshold == 0.8:
            raise PlanError("no such plan")
        return plan_for(experiment, threshold=threshold, **named)

    monkeypatch.setattr(run_module, "plan_for", planned)
    grid = {"rules": ["mean"], "scored_at": [0.9, 0.8, 0.7], "task": "piqa", "limit": 2}
    assert run_study(experiment, "thresholds", grid) == {"mean at 0.8": "no such plan"}
    assert [row["threshold"] for row in experiment.study("thresholds")["scores"]] == [0.9, 0.7]


def test_plans_at_thresholds_are_scored_once(experiment, monkeypatch):
    scored = []

    def told(model, *arguments, whole=zero_shot):
        scored.append(model)
        if len(scored) == 3:
            raise Cancelled
        return whole(model, *arguments)

    monkeypatch.setattr(run_module, "zero_shot", told)
    grid = {"rules": ["keep_first", "mean"], "from": 0.5, "scored_at": [0.99, 0.9, 0.5], "task": "piqa", "limit": 4}
    with pytest.raises(Cancelled):
        run_study(experiment, "thresholds", grid)
    assert run_study(experiment, "thresholds", grid) == {}
    rows = experiment.study("thresholds")["scores"]
    assert [(row["rule"], row["threshold"]) for row in rows] == [
        (rule, threshold) for rule in grid["rules"] for threshold in grid["scored_at"]
    ]
    for row in rows:
        plan = plan_for(experiment, threshold=row["threshold"], rule=row["rule"]).plan
        assert (row["layers"], row["windows"]) == (plan.layers_left, plan.to_dict()["windows"])
        assert (row["task"], row["documents"]) == ("piqa", 4)
    plans = {(row["rule"] if row["windows"] else "", str(row["windows"])): row["value"] for row in rows}
    assert len(scored) == len(plans) + 1  # the one that was cancelled, again
    merged = apply_plan(load_original(experiment)[0], plan)
    (score,) = zero_shot(merged, load_original(experiment)[1], ["piqa"], 4)
    assert rows[-1]["value"] == score.value
    assert run_study(experiment, "thresholds", grid) == {}
    assert len(scored) == len(plans) + 1
    with pytest.raises(SettingsError, match="Unknown task 'chess'"):
        run_study(experiment, "thresholds", {**grid, "task": "chess"})
    with pytest.raises(SettingsError, match=r"Threshold 0.4 of scored_at is out of range. Use a value from 0.5 to 1"):
        run_study(experiment, "thresholds", {**grid, "scored_at": [0.4]})
    with pytest.raises(SettingsError, match=r"from: 2.0 is out of range. Use a value above 0 and at most 1"):
        run_study(experiment, "thresholds", {**grid, "from": 2})


def test_scores_at_thresholds_of_another_grid_are_kept_but_not_shown(experiment):
    grid = {"rules": ["keep_first"], "from": 0.5, "scored_at": [0.9, 0.5], "task": "piqa", "limit": 3}
    run_study(experiment, "thresholds", grid)
    before = experiment.study("thresholds")["scores"]
    run_study(experiment, "thresholds", {**grid, "limit": 4, "scored_at": [0.5]})
    after = experiment.study("thresholds")["scores"]
    assert after[:2] == before
    assert [row["documents"] for row in after] == [3, 3, 4]
    assert ThresholdGrid(**grid).scores_in(after) == before
    after[0]["windows"] = [[0, 1], [2, 3]]  # as if the path had been recomputed
    experiment.save_study("thresholds", {"failed": {}, "grid": grid, "scores": after})
    run_study(experiment, "thresholds", grid)
    assert len(experiment.study("thresholds")["scores"]) == 3
    assert before[0] in experiment.study("thresholds")["scores"]


def test_depth_and_width_together(experiment):
    changes = {"ratios": [0, 0.25], "total": 0.5, "width_by": ["flap", "taylor"], "planners": ["sleb"], "rules": []}
    assert run_study(experiment, "width", {**SMALL, **changes, "heal": ["sleb"], "control": False}) == {}
    rows = [row for row in study_rows(experiment) if row.stage == "merged"]
    assert {(row.layers, row.method) for row in rows} == {
        (4, "sleb + flap"), (4, "sleb + taylor"), (3, "sleb + flap"), (3, "sleb + taylor"),
    }  # fmt: skip
    assert not any(row.fitted_first for row in study_rows(experiment))
    whole = experiment.model_facts["parameters"]
    assert all(row.parameters < 0.7 * whole for row in rows)
    assert experiment.run("sleb-3-taylor-333").stage == "recovered"


def test_each_method_meets_a_size_in_a_model_whose_layers_differ(tmp_path, tokenizer, text_file, home):
    """Held against the parameters of the models that the study wrote, and of each method's plans with more layers."""
    settings = {
        "n_routed_experts": 2, "n_shared_experts": 1, "num_experts_per_tok": 2, "moe_intermediate_size": 8,
        "n_group": 1, "topk_group": 1, "first_k_dense_replace": 2, "q_lora_rank": 16, "kv_lora_rank": 16,
        "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 8, "num_key_value_heads": 4,
        "intermediate_size": 512,
    }  # fmt: skip
    model = tiny_model("deepseek_v3", layers=6, **settings)
    for part in (model, tokenizer):
        part.save_pretrained(tmp_path / "model")
    experiment = create_experiment("sizes", ExperimentSettings(str(tmp_path / "model"), str(text_file), 3, 16))
    dense, sparse = (parameter_count(find_decoder(model).layers[layer]) for layer in (0, 5))
    most = parameter_count(model) - 2 * sparse  # without two sparse layers, or without one dense one
    assert dense > 2 * sparse
    grid = {**SMALL, "ratios": (), "heal": [], "tasks": (), "planners": ["shortgpt", "random"], "rules": []}
    assert run_study(experiment, "methods", {**grid, "parameters": [str(most)], "keep_models": True}) == {}
    runs = {run.settings["method"]: run for run in experiment.runs() if not run.is_baseline}
    assert runs.keys() == {"shortgpt", "random"}
    found = experiment.study("methods")["within"]
    assert {method: list(each) for method, each in found.items()} == {one: [f"parameters: {most}"] for one in runs}
    for method, run in runs.items():
        sizes = {}
        for layers in range(run.plan.layers_left, 5):
            data = plan_by(experiment, method, layers)
            sizes[layers] = parameter_count(apply_plan(model, MergePlan.from_dict(data)))
        assert parameter_count(AutoModelForCausalLM.from_pretrained(run.model_folder)) == sizes.pop(
            run.plan.layers_left
        )
        assert run.settings["merge"]["parameters"] <= most < min(sizes.values(), default=most + 1)


def test_speeds_and_losses_are_depths_that_the_study_finds(experiment, made):
    grid = {**SMALL, "ratios": (), "heal": [], "tasks": (), "planners": ["sleb"], "rules": ["rdsc"]}
    timed = {**grid, "speedup": [1.3]}
    run_study(experiment, "methods", timed)
    measured = experiment.cost()
    fastest = {layers: 1 / (measured["layers_ms"] * layers / 4 + measured["rest_ms"]) for layers in (4, 3, 2)}
    expected = next(layers for layers in (3, 2) if fastest[layers] >= 1.3 * fastest[4])
    assert {run.plan.layers_left for run in experiment.runs() if not run.is_baseline} == {expected}

    lost = {**grid, "loss": ["0.5%", "900%"]}
    failed = run_study(experiment, "methods", lost)
    within = experiment.study("methods")["within"]
    for method, found in within.items():
        for loss, layers in found.items():
            factor = 1 + float(loss.removesuffix("%")) / 100
            for left in (2, 3):
                if method == "sleb":
                    data = plan_by(experiment, "sleb", left)
                    ratio = data["perplexity"] / data["perplexity_original"]
                else:
                    path = kept_path(experiment, "rdsc")
                    steps = [step.perplexity for step in path.intervals() if step.plan.layers_left == left]
                    ratio = min(steps, default=float("inf")) / path.perplexities[()]
                assert (ratio <= factor) == (left >= layers), (method, loss, left)
    assert {f"{method} within {loss}" for method in ("sleb", "rdsc") for loss in lost["loss"]} == (
        failed.keys() | {f"{method} within {loss}" for method, found in within.items() for loss in found}
    )
    names = {f"{method}-{layers}" for method, found in within.items() for layers in found.values()}
    assert names <= {run.name for run in experiment.runs()}
    made.clear()
    run_study(experiment, "methods", lost)
    assert made == []
